"""Weights of other frameworks as Flax variables."""
