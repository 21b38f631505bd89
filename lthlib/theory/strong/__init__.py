"""Strong lottery tickets: a random network pruned into a given one."""
