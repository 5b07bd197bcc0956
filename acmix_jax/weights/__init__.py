"""Weights of other frameworks as Flax variables."""

from acmix_jax.weights.files import load_weights, save_weights
from acmix_jax.weights.state_dict import from_torch

__all__ = ['from_torch', 'load_weights', 'save_weights']
