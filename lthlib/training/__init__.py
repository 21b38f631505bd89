"""Tickets trained: the recipe, the loop, the stored results."""
