"""PyTorch state dicts as Flax variables, by one table of patterns a family.

A table row is (pattern of our whole path, official name, layout): the first
row whose pattern matches says which official entry holds a variable, and the
layout turns its array into ours. One official entry may serve several rows.
"""

import logging
import re
from collections.abc import Mapping
from typing import Any

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
  family = re.match('[a-z]+', overrides.get('backbone') or name)[0]
  table = _TABLES[family]
  if 'backbone' in overrides:
    table = [*layouts.within('backbone', table), *_HEADS[name]]
  given = _RENAMED.get(family, dict)(unwrap(state_dict, average))
  converted, official_names, missing = {}, {}, set()
  for path, shape in wanted.items():
    official, layout = _find(table, path)
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
    return layout(x, shape)
  except (ValueError, IndexError):  # The layout is of arrays with other axes.
    return x


def _shapes(model) -> dict[str, tuple[int, ...]]:
  images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
  variables = jax.eval_shape(model.init, jax.random.key(0), images)
  return {path: leaf.shape for path, leaf in names.flatten(variables).items()}


def _find(table, path):
  for pattern, official, layout in table:
    match = re.fullmatch(pattern, path)
    if match:
      return match.expand(official), layout
  raise AssertionError(f'No row of the table matches {path}.')
