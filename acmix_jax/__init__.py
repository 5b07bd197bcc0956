"""ACmix and convolution-attention hybrids in JAX/Flax."""

from acmix_jax import cpu_kernels
from acmix_jax.models import create_model, list_heads, list_models
from acmix_jax.nn.acmix import ACmix
from acmix_jax.version import __version__
from acmix_jax.weights import from_torch, load_weights, to_torch

__all__ = [
  'ACmix',
  '__version__',
  'cpu_kernels',
  'create_model',
  'from_torch',
  'list_heads',
  'list_models',
  'load_weights',
  'to_torch',
]
