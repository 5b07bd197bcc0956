"""Metrics over a whole split, on the host: numpy alone."""
