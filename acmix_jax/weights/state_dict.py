"""PyTorch state dicts as Flax variables, by one table of patterns a family.

A table row is (pattern of our whole path, official name, layout): the first
row whose pattern matches says which official entry holds a variable, and the
layout turns its array into ours. One official entry may serve several rows.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from acmix_jax import models
from acmix_jax.weights.tables import pvt, resnet, san, swin

_TABLES = {
  'resnet': resnet.TABLE,
  'san': san.TABLE,
  'pvt': pvt.TABLE,
  'swin': swin.TABLE,
}
# Families that other libraries hold under other names.
_RENAMED = {'swin': swin.official_names}
# Counters of PyTorch's BatchNorm, which the computation does not use, and what
# Swin computes from its sizes.
_IGNORED = r'.*(num_batches_tracked|relative_position_index|attn_mask)'


def from_torch(
  name: str, state_dict: Mapping[str, np.ndarray], **overrides: Any
) -> dict[str, Any]:
  """Converts official weights into the variables of a model.

  Args:
    name: one of `acmix_jax.list_models()`.
    state_dict: arrays (or PyTorch tensors on the CPU) by official names.
    **overrides: the fields the model is made with, if not the defaults.

  Returns:
    {'params': ..., 'batch_stats': ...} of float32 numpy arrays.

  Raises:
    KeyError: no model has that name.
    ValueError: entries are missing, extra or of another shape; all of them are
      named at once.
  """
  wanted = _shapes(models.create_model(name, **overrides))
  family = re.match('[a-z]+', name)[0]
  table = _TABLES[family]
  state_dict = _RENAMED.get(family, dict)(state_dict)
  converted, problems, used = {}, [], set()
  for path, shape in wanted.items():
    official, layout = _find(table, path)
    used.add(official)
    if official not in state_dict:
      problems.append(f'missing: {official}')
      continue
    value = layout(np.asarray(state_dict[official], np.float32), shape)
    if value.shape != shape:
      given = np.shape(state_dict[official])
      problems.append(f'misshapen: {official} {given}; {path} is {shape}')
    converted[path] = value
  extra = [key for key in state_dict if not re.fullmatch(_IGNORED, key)]
  problems += [f'extra: {key}' for key in extra if key not in used]
  if problems:
    raise ValueError(
      f'{name}: the state dict does not fit in {len(problems)} entries:\n  '
      + '\n  '.join(sorted(set(problems)))
    )
  return traverse_util.unflatten_dict(converted, sep='/')


def _shapes(model) -> dict[str, tuple[int, ...]]:
  images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
  variables = jax.eval_shape(model.init, jax.random.key(0), images)
  flat = traverse_util.flatten_dict(variables, sep='/')
  return {path: leaf.shape for path, leaf in flat.items()}


def _find(table, path):
  for pattern, official, layout in table:
    match = re.fullmatch(pattern, path)
    if match:
      return match.expand(official), layout
  raise AssertionError(f'No row of the table matches {path}.')
