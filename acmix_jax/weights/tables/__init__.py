"""Names of official weights, one table a family."""
