"""What a run leaves behind and how it is judged: tables, claims, plots, widgets."""
