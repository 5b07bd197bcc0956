"""The models by name."""

from acmix_jax.models.registry import (
  create_model,
  list_heads,
  list_models,
  make_backbone,
  split_name,
  with_acmix,
)

__all__ = [
  'create_model',
  'list_heads',
  'list_models',
  'make_backbone',
  'split_name',
  'with_acmix',
]
