"""The theory that the notebooks check: sketching, subset sums, strong and universal tickets."""
