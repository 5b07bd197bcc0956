"""Flax layers."""
