"""Universal lottery tickets: functions as masks on random networks."""
