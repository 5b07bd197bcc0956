"""Weights of other frameworks as Flax variables."""

from acmix_jax.interop.torch import from_torch

__all__ = ['from_torch']
