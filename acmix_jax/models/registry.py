"""The models by name."""

import dataclasses
import fnmatch
import functools
from collections.abc import Callable

import jax.numpy as jnp
from flax import linen as nn

from acmix_jax import lookup
from acmix_jax.models.backbones import pvt, resnet, san, swin

# By the value of `mix` of the models that have attention without ACmix, too.
_SUFFIXES = {'attention': '', 'acmix': '_acmix'}


def _resnets() -> dict[str, Callable[..., nn.Module]]:
  depths = {26: (1, 2, 4, 1), 38: (2, 3, 5, 2), 50: (3, 4, 6, 3)}
  suffixes = {'conv': '', 'attention': '_attention', 'acmix': '_acmix'}
  return {
    f'resnet{depth}{suffix}': functools.partial(
      resnet.ResNet, stage_sizes=stage_sizes, mix=mix
    )
    for depth, stage_sizes in depths.items()
    for mix, suffix in suffixes.items()
  }


def _sans() -> dict[str, Callable[..., nn.Module]]:
  depths = {10: (2, 1, 2, 4, 1), 15: (3, 2, 3, 5, 2), 19: (3, 3, 4, 6, 3)}
  return {
    f'san{depth}{suffix}': functools.partial(
      san.SAN, stage_sizes=stage_sizes, mix=mix
    )
    for depth, stage_sizes in depths.items()
    for mix, suffix in _SUFFIXES.items()
  }


def _pvts() -> dict[str, Callable[..., nn.Module]]:
  sizes = {'tiny': (2, 2, 2, 2), 'small': (3, 4, 6, 3)}
  return {
    f'pvt_{size}{suffix}': functools.partial(
      pvt.PVT, stage_sizes=stage_sizes, mix=mix
    )
    for size, stage_sizes in sizes.items()
    for mix, suffix in _SUFFIXES.items()
  }


def _swins() -> dict[str, Callable[..., nn.Module]]:
  sizes = {'tiny': (2, 2, 6, 2), 'small': (2, 2, 18, 2)}
  return {
    f'swin_{size}{suffix}': functools.partial(
      swin.Swin, stage_sizes=stage_sizes, mix=mix
    )
    for size, stage_sizes in sizes.items()
    for mix, suffix in _SUFFIXES.items()
  }


_MODELS = _resnets() | _sans() | _pvts() | _swins()


def list_models(pattern: str = '*') -> list[str]:
  """Sorted names of the models that match a shell-style pattern."""
  return sorted(fnmatch.filter(_MODELS, pattern))


def create_model(
  name: str,
  num_classes: int = 1000,
  dtype: jnp.dtype | str = jnp.float32,
  **overrides,
) -> nn.Module:
  """Makes a classifier, which is a backbone too.

    variables = model.init(key, images)                       # [b, h, w, 3]
    logits = model.apply(variables, images, train=False)      # [b, classes]
    maps = model.apply(variables, images, method='features')  # by stage

  Args:
    name: one of `list_models()`.
    num_classes: outputs of the classifier.
    dtype: of the computation; parameters are float32 by default.
    **overrides: any other field of the model.

  Raises:
    KeyError: no model has that name.
    ValueError: the model has no such field.
  """
  make = lookup.find(_MODELS, name, 'Model')
  fields = [f.name for f in dataclasses.fields(make.func) if f.init]
  for field in overrides:
    if field not in fields:
      raise lookup.UnknownName(
        lookup.unknown(f'Field of {name}', field, fields)
      )
  return make(num_classes=num_classes, dtype=jnp.dtype(dtype), **overrides)
