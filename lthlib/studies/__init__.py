"""What one notebook needs: its arms, rows and figures."""
