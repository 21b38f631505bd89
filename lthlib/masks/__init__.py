"""Masks as plain tensors: exact top-k, draws, counts, controls."""
