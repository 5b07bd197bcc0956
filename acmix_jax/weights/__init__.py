"""Arrays by name: files of weights, other frameworks' weights, assignment."""

from acmix_jax.weights.acmixing import (
  acmixed,
  acmixify,
  check_acmix_options,
)
from acmix_jax.weights.assignment import assign
from acmix_jax.weights.collapsing import collapse
from acmix_jax.weights.files import (
  find,
  load_description,
  load_weights,
  save_weights,
)
from acmix_jax.weights.state_dict import from_torch, to_torch

__all__ = [
  'acmixed',
  'acmixify',
  'assign',
  'check_acmix_options',
  'collapse',
  'find',
  'from_torch',
  'load_description',
  'load_weights',
  'save_weights',
  'to_torch',
]
