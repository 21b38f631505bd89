"""Which of n random numbers add up to a target, and how many are needed."""
