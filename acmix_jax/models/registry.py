"""The models by name."""

import dataclasses
import fnmatch
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.typing import DTypeLike

from acmix_jax import lookup
from acmix_jax.models import classifier
from acmix_jax.models.backbones import backbone, pvt, resnet, san, swin


class _Family(NamedTuple):
  """Models that differ in size and operator.

  Attributes:
    backbone: Class of the backbones.
    head: Class of the classifier's head.
    sizes: Fields of the backbone by the size in the model's name.
    suffixes: End of the model's name by operator.
  """

  backbone: type[backbone.Backbone]
  head: type[classifier.Head]
  sizes: Mapping[str, Mapping[str, Any]]
  suffixes: Mapping[str, str]


class _Row(NamedTuple):
  """A model: its family and the fields of its backbone."""

  family: _Family
  fields: Mapping[str, Any]


_SUFFIXES = {'attention': '', 'acmix': '_acmix'}
_FAMILIES = [
  _Family(
    resnet.ResNet,
    classifier.PooledHead,
    {
      'resnet26': dict(stage_sizes=(1, 2, 4, 1)),
      'resnet38': dict(stage_sizes=(2, 3, 5, 2)),
      'resnet50': dict(stage_sizes=(3, 4, 6, 3)),
    },
    {'conv': '', 'attention': '_attention', 'acmix': '_acmix'},
  ),
  _Family(
    san.SAN,
    classifier.PooledHead,
    {
      'san10': dict(stage_sizes=(1, 2, 4, 1), stem_size=2),
      'san15': dict(stage_sizes=(2, 3, 5, 2)),
      'san19': dict(stage_sizes=(3, 4, 6, 3)),
    },
    _SUFFIXES,
  ),
  _Family(
    pvt.PVT,
    classifier.TokenHead,
    {
      'pvt_tiny': dict(stage_sizes=(2, 2, 2, 2)),
      'pvt_small': dict(stage_sizes=(3, 4, 6, 3)),
    },
    _SUFFIXES,
  ),
  _Family(
    swin.Swin,
    classifier.NormPooledHead,
    {
      'swin_tiny': dict(stage_sizes=(2, 2, 6, 2)),
      'swin_small': dict(stage_sizes=(2, 2, 18, 2)),
    },
    _SUFFIXES,
  ),
]
_MODELS = {
  f'{size}{suffix}': _Row(family, {**fields, 'operator': operator})
  for family in _FAMILIES
  for size, fields in family.sizes.items()
  for operator, suffix in family.suffixes.items()
}


def list_models(pattern: str = '*') -> list[str]:
  """Sorted names of the models that match a shell-style pattern."""
  return sorted(fnmatch.filter(_MODELS, pattern))


def make_backbone(
  name: str, dtype: DTypeLike = jnp.float32, **overrides: Any
) -> backbone.Backbone:
  """Makes a backbone, which maps images to stages and has no head.

    maps = backbone.apply(variables, images, train=False)  # by stage

  Args:
    name: One of `list_models()`.
    dtype: Computation dtype; parameters are float32 by default.
    **overrides: Any other field of the backbone.

  Raises:
    KeyError: No model has that name.
    ValueError: The backbone has no such field.
  """
  row = lookup.find(_MODELS, name, 'Model')
  fields = [
    field.name
    for field in dataclasses.fields(row.family.backbone)
    if field.init and field.name not in ('parent', 'name')
  ]
  for field in overrides:
    if field not in fields:
      raise ValueError(lookup.unknown(f'Field of {name}', field, fields))
  return row.family.backbone(
    dtype=jnp.dtype(dtype), **{**row.fields, **overrides}
  )


def create_model(
  name: str,
  num_classes: int = 1000,
  dtype: DTypeLike = jnp.float32,
  **overrides: Any,
) -> classifier.Classifier:
  """Makes a classifier.

    variables = model.init(key, images)                       # [b, h, w, 3]
    logits = model.apply(variables, images, train=False)      # [b, classes]
    maps = model.apply(variables, images, method='features')  # by stage

  Args:
    name: One of `list_models()`.
    num_classes: Outputs of the classifier.
    dtype: Computation dtype; parameters are float32 by default.
    **overrides: Any other field of the backbone, see `make_backbone`.

  Raises:
    KeyError: No model has that name.
    ValueError: The backbone has no such field.
  """
  backbone = make_backbone(name, dtype, **overrides)
  head = _MODELS[name].family.head(
    num_classes, backbone.dtype, backbone.param_dtype
  )
  return classifier.Classifier(backbone, head)
