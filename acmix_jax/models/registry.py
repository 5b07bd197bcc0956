"""The models by name: classifiers, and dense heads on their backbones."""

import dataclasses
import fnmatch
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from acmix_jax import lookup
from acmix_jax.models import classifier, detection, segmenters
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


# Fields that flax gives every module.
_OF_EVERY_MODULE = ('parent', 'name')


class _DenseHead(NamedTuple):
  """A model of dense prediction on any backbone.

  Attributes:
    make: Function from a backbone, the number of classes and fields of its own,
      which are keywords with defaults, to the model.
    num_classes: Classes of the data set it was published with.
    variants: Fields of the backbones that dense prediction has another variant
      of, by class.
  """

  make: Callable[..., nn.Module]
  num_classes: int
  variants: Mapping[type[backbone.Backbone], Mapping[str, Any]]

  @property
  def fields(self) -> list[str]:
    """Names of the fields of its own."""
    parameters = inspect.signature(self.make).parameters.values()
    return [
      x.name
      for x in parameters
      if x.kind == x.KEYWORD_ONLY and x.name not in _OF_EVERY_MODULE
    ]


_SEGMENTATION = {swin.Swin: {'dense': True}, pvt.PVT: {'token_position': True}}
_DETECTION = {swin.Swin: {'dense': True}}
_HEADS = {
  'semantic_fpn': _DenseHead(segmenters.semantic_fpn, 150, _SEGMENTATION),
  'upernet': _DenseHead(segmenters.upernet, 150, _SEGMENTATION),
  'retinanet': _DenseHead(detection.RetinaNet, 80, _DETECTION),
  'mask_rcnn': _DenseHead(detection.MaskRCNN, 80, _DETECTION),
  'cascade_mask_rcnn': _DenseHead(detection.CascadeMaskRCNN, 80, _DETECTION),
}
_NUM_CLASSES = 1000  # of a classifier


def list_models(pattern: str = '*') -> list[str]:
  """Sorted names of the classifiers that match a shell-style pattern.

  Each is the name of a backbone, too, for the heads of `list_heads()`.
  """
  return sorted(fnmatch.filter(_MODELS, pattern))


def list_heads(pattern: str = '*') -> list[str]:
  """Sorted names of the dense heads that match a shell-style pattern."""
  return sorted(fnmatch.filter(_HEADS, pattern))


def split_name(name: str) -> dict[str, str]:
  """The fields that one word stands for: a classifier or HEAD:BACKBONE.

    split_name('upernet:swin_tiny')  # {'name': 'upernet',
                                     #  'backbone': 'swin_tiny'}
    split_name('swin_tiny')          # {'name': 'swin_tiny'}

  Args:
    name: Registered name of a classifier, or those of a head and a backbone
      with a colon between them.
  """
  head, separator, backbone = name.partition(':')
  return {'name': head} | ({'backbone': backbone} if separator else {})


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
    KeyError: No backbone has that name.
    ValueError: The backbone has no such field.
  """
  row = lookup.find(_MODELS, name, 'Backbone')
  _check_fields(name, overrides, _backbone_fields(row))
  return row.family.backbone(
    dtype=jnp.dtype(dtype), **{**row.fields, **overrides}
  )


def create_model(
  name: str,
  num_classes: int | None = None,
  dtype: DTypeLike = jnp.float32,
  *,
  backbone: str | None = None,
  **overrides: Any,
) -> nn.Module:
  """Makes a classifier, or a model of dense prediction.

    model = create_model('swin_tiny_acmix')
    variables = model.init(key, images)                       # [b, h, w, 3]
    logits = model.apply(variables, images, train=False)      # [b, classes]
    maps = model.apply(variables, images, method='features')  # by stage

    model = create_model('upernet', backbone='swin_tiny_acmix')
    logits = model.apply(variables, images)       # [b, h / 4, w / 4, classes]

    model = create_model('mask_rcnn', backbone='swin_tiny_acmix')
    detections = model.apply(variables, images, sizes)   # see `detection`

  Args:
    name: One of `list_models()`, or of `list_heads()`.
    num_classes: Number of classes; None: 1000, those of ImageNet, of a
      segmenter 150, those of ADE20K, and of a detector 80, those of COCO.
    dtype: Computation dtype; parameters are float32 by default.
    backbone: Backbone of a head: one of `list_models()`.
    **overrides: Any other field of the backbone, see `make_backbone`, or of the
      head, see `segmenters` and `detection`.

  Raises:
    KeyError: No model or backbone has that name.
    ValueError: A field is unknown, or the backbone is missing or one too many.
  """
  if name in _HEADS:
    return _create_dense(name, num_classes, dtype, backbone, overrides)
  row = lookup.find({**_MODELS, **_HEADS}, name, 'Model')
  if backbone is not None:
    raise ValueError(
      f'{name} is a classifier and takes no backbone={backbone!r}; heads that '
      f'do: {", ".join(_HEADS)}.'
    )
  body = make_backbone(name, dtype, **overrides)
  head = row.family.head(
    _NUM_CLASSES if num_classes is None else num_classes,
    body.dtype,
    body.param_dtype,
  )
  return classifier.Classifier(body, head)


def _create_dense(name, num_classes, dtype, backbone, overrides):
  head = _HEADS[name]
  if backbone is None:
    raise ValueError(
      f"{name} needs a backbone, as in create_model('{name}', "
      f"backbone='resnet50_acmix'). Known: {', '.join(_MODELS)}."
    )
  row = lookup.find(_MODELS, backbone, 'Backbone')
  known = [*head.fields, *_backbone_fields(row)]
  _check_fields(f'{name} on {backbone}', overrides, known)
  own = {key: overrides.pop(key) for key in head.fields if key in overrides}
  fields = {**head.variants.get(row.family.backbone, {}), **overrides}
  return head.make(
    make_backbone(backbone, dtype, **fields),
    head.num_classes if num_classes is None else num_classes,
    **own,
  )


def _backbone_fields(row: _Row) -> list[str]:
  return [
    field.name
    for field in dataclasses.fields(row.family.backbone)
    if field.init and field.name not in _OF_EVERY_MODULE
  ]


def _check_fields(name, given, known):
  for field in given:
    if field not in known:
      raise ValueError(lookup.unknown(f'Field of {name}', field, known))
