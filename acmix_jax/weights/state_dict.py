"""PyTorch state dicts as Flax variables and back, by one table a family.

A table row is (pattern of our whole path, official name, layout): the variables
that the pattern matches are in the entry of that name, and the layout turns the
arrays into each other. One entry may hold several variables along its second
axis, in the order of their rows. A layout one way alone is of a buffer, which
the official code keeps and can compute; it is written and never read.
"""

import collections
import logging
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from acmix_jax import models
from acmix_jax.weights import interpolation, names
from acmix_jax.weights.tables import (
  detection,
  layouts,
  pvt,
  resnet,
  san,
  segmentation,
  swin,
)

logger = logging.getLogger(__name__)

_TABLES = {
  'resnet': resnet.TABLE,
  'san': san.TABLE,
  'pvt': pvt.TABLE,
  'swin': swin.TABLE,
}
# Of necks and heads, which stand on any backbone.
_HEADS = {
  'semantic_fpn': segmentation.TABLE,
  'upernet': segmentation.TABLE,
  'retinanet': detection.RETINANET,
  'mask_rcnn': detection.MASK_RCNN,
  'cascade_mask_rcnn': detection.CASCADE,
}
# Buffers that the classifiers of a family have, and dense heads do not.
_CLASSIFIER_BUFFERS = {'swin': swin.MASKS}
# Families that other libraries hold under other names.
_RENAMED = {'pvt': pvt.official_names, 'swin': swin.official_names}
# Counters of PyTorch's BatchNorm and moving averages, which the computation
# does not use, and what Swin computes from its sizes.
_IGNORED = (
  r'.*(num_batches_tracked|n_averaged|relative_position_index|attn_mask)'
)
# Where training programs put a state dict in what they save, and the moving
# averages of its arrays. These are what was evaluated.
_AVERAGES = ('state_dict_ema', 'model_ema')
_ENTRIES = ('state_dict', 'model_state', 'model')
# What DataParallel, torch.compile and the modules of training programs put
# before each name.
_PREFIXES = re.compile(r'^(?:(?:module|_orig_mod|model)\.)+')


def from_torch(
  name: str,
  state_dict: Mapping[str, Any],
  *,
  average: bool = True,
  **overrides: Any,
) -> dict[str, Any]:
  """Converts official weights into the variables of a model.

  Args:
    name: one of `acmix_jax.list_models()`, or a head with its `backbone` among
      the overrides.
    state_dict: arrays or PyTorch tensors by official names, or what a training
      program saved around them; see `unwrap`.
    average: see `unwrap`.
    **overrides: the fields the model is made with, if not the defaults.
      Position tables are interpolated to them, see `interpolation.fit`.

  Returns:
    {'params': ..., 'batch_stats': ...} of float32 numpy arrays.

  Raises:
    KeyError: no model has that name.
    ValueError: there is no state dict, or entries are missing, extra or of
      another shape; the message names ten of each kind.
  """
  wanted = _shapes(models.create_model(name, **overrides))
  family, table = _table(name, overrides.get('backbone'))
  given = _RENAMED.get(family, dict)(unwrap(state_dict, average))
  converted, official_names, missing = {}, {}, set()
  for path, shape in wanted.items():
    _, official, layout = next(
      row for row in _rows(table, path) if row.layout.to_ours
    )
    official_names[path] = official
    if official in given:
      converted[path] = _arranged(layout, given[official], shape)
    else:
      missing.add(official)
  converted = interpolation.fit(converted, wanted)
  misshapen = [
    f'{official_names[path]} {given[official_names[path]].shape}, {path} is '
    f'{wanted[path]}'
    for path, value in converted.items()
    if value.shape != wanted[path]
  ]
  extra = {key for key in given if not re.fullmatch(_IGNORED, key)}
  extra -= set(official_names.values())
  if missing or misshapen or extra:
    problems = names.listing(
      {'missing': missing, 'extra': extra, 'of another shape': misshapen}
    )
    raise ValueError(f'{name}: the state dict does not fit.\n{problems}')
  return names.unflatten(converted)


def to_torch(
  name: str, variables: Mapping[str, Any], **overrides: Any
) -> dict[str, np.ndarray]:
  """Converts the variables of a model into official weights.

    arrays = acmix_jax.to_torch('resnet50_acmix', variables)
    state_dict = {key: torch.from_numpy(x) for key, x in arrays.items()}
    official_model.load_state_dict(state_dict)

  The inverse of `from_torch`. The buffers of the official code are written,
  too, so that it loads the result strictly: `num_batches_tracked` is 0, and the
  masks of Swin's classifiers are those of images of 32 times the window's side.

  Args:
    name: one of `acmix_jax.list_models()`, or a head with its `backbone` among
      the overrides.
    variables: {'params': ..., 'batch_stats': ...}.
    **overrides: the fields the model is made with, if not the defaults.

  Returns:
    Contiguous arrays by official names; weights have the dtypes of the
    variables, counters and indices are int64.

  Raises:
    KeyError: no model has that name.
    ValueError: variables are missing, unknown or of another shape; the message
      names ten of each kind.
  """
  wanted = _shapes(models.create_model(name, **overrides))
  given = names.flatten(variables)
  problems = names.listing(
    {
      'missing': wanted.keys() - given.keys(),
      'unknown': given.keys() - wanted.keys(),
      'of another shape': [
        f'{path} {np.shape(x)}, the model has {wanted[path]}'
        for path, x in given.items()
        if path in wanted and np.shape(x) != wanted[path]
      ],
    }
  )
  if problems:
    raise ValueError(f'{name}: the variables do not fit.\n{problems}')
  _, table = _table(name, overrides.get('backbone'))
  parts = collections.defaultdict(list)
  for path, x in given.items():
    for number, official, layout in _rows(table, path):
      part = layout.to_official(np.asarray(x))
      parts[official].append((number, part))
  return {official: _joined(entry) for official, entry in parts.items()}


def _joined(entry):
  """One array of the numbered parts of an entry."""
  entry = [part for _, part in sorted(entry, key=lambda x: x[0])]
  joined = entry[0] if len(entry) == 1 else np.concatenate(entry, axis=1)
  return np.ascontiguousarray(joined).reshape(joined.shape)


def unwrap(
  saved: Mapping[str, Any], average: bool = True
) -> dict[str, np.ndarray]:
  """Finds the state dict in what a PyTorch program saved.

  Args:
    saved: tensors or arrays by name, or a dict that has them under one of the
      usual keys, such as {'state_dict': ..., 'epoch': 90}. Names may have the
      prefixes of wrappers, such as 'module.'.
    average: whether of a dict with both moving averages and the weights of the
      last update the former are read.

  Returns:
    float32 arrays by names without these prefixes.

  Raises:
    ValueError: there is no state dict, or two entries have the same name
      without the prefixes.
  """
  while entry := _entry(saved, average):
    logger.info(
      'Reading the entry %r of %s.', entry, ', '.join(map(str, saved))
    )
    saved = saved[entry]
  others = [name for name, x in saved.items() if not hasattr(x, 'dtype')]
  if others or not saved:
    raise ValueError(
      'There is no state dict, neither at the top nor under '
      f'{" or ".join(map(repr, (*_AVERAGES, *_ENTRIES)))}. '
      + names.listing({'entries are no arrays': others})
    )
  prefixes = {match[0] for name in saved if (match := _PREFIXES.match(name))}
  if prefixes:
    logger.info(
      'Reading names without their prefix %s', ' or '.join(sorted(prefixes))
    )
  arrays = {_PREFIXES.sub('', name): x for name, x in saved.items()}
  if len(arrays) < len(saved):
    raise ValueError(
      f'{len(saved) - len(arrays)} names of the state dict occur twice, with '
      f'and without {" or ".join(sorted(prefixes))}'
    )
  return {name: _as_numpy(x) for name, x in arrays.items()}


def _entry(saved, average):
  """The first of the usual keys that holds a dict, None without any."""
  keys = (*_AVERAGES, *_ENTRIES) if average else (*_ENTRIES, *_AVERAGES)
  return next(
    (key for key in keys if isinstance(saved.get(key), Mapping)), None
  )


def _as_numpy(x):
  # A PyTorch tensor may be a Parameter, on another device, or of a type that
  # numpy lacks.
  if hasattr(x, 'detach'):
    x = x.detach().cpu().float().numpy()
  return np.asarray(x, np.float32)


def _arranged(layout, x, shape):
  """The array in our layout, or as it is where the layout takes no such."""
  try:
    return layout.to_ours(x, shape)
  except (ValueError, IndexError):  # The layout is of arrays with other axes.
    return x


def _shapes(model) -> dict[str, tuple[int, ...]]:
  images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
  variables = jax.eval_shape(model.init, jax.random.key(0), images)
  return {path: leaf.shape for path, leaf in names.flatten(variables).items()}


class _Row(NamedTuple):
  """A row of a table for one variable.

  Attributes:
    number: Number of the row.
    official: Official name.
    layout: Layout.
  """

  number: int
  official: str
  layout: layouts.Layout


def _table(name, backbone):
  """The family of a model, and its table."""
  family = re.match('[a-z]+', backbone or name)[0]
  table = _TABLES[family]
  if backbone:
    return family, [*_HEADS[name], *layouts.within('backbone', table)]
  return family, [*table, *_CLASSIFIER_BUFFERS.get(family, [])]


def _rows(table, path) -> list[_Row]:
  """The rows of a variable."""
  rows = []
  for number, (pattern, official, layout) in enumerate(table):
    if match := re.fullmatch(pattern, path):
      rows.append(_Row(number, match.expand(official), layout))
  assert any(row.layout.to_ours for row in rows), path
  return rows
