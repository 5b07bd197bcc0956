"""Weights of other frameworks as Flax variables."""

from acmix_jax.interop.safetensors import load_weights, save_weights
from acmix_jax.interop.torch import from_torch

__all__ = ['from_torch', 'load_weights', 'save_weights']
