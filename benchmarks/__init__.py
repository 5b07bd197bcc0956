"""Measurements: `python -m benchmarks.operator`, `.train_step`, `.pipeline`."""
