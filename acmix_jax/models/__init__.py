"""The models by name."""

from acmix_jax.models.registry import (
  create_model,
  list_models,
  make_backbone,
)

__all__ = ['create_model', 'list_models', 'make_backbone']
