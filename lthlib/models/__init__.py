"""Architectures: what a network is, its modules and its initial states."""
