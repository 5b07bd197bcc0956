"""Position tables of weights, interpolated to the sizes that a model has."""

import logging
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from acmix_jax.ops import resize
from acmix_jax.weights import names

logger = logging.getLogger(__name__)


def fit(
  weights: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Any]:
  """Interpolates the position tables that have another size, and says which.

  Swin's biases [(2 * window - 1)^2, heads] have one entry for each offset of
  two pixels: they are interpolated bicubically over the offsets. Source:
  `load_pretrained` in utils.py of microsoft/Swin-Transformer, which equals
  `resize_rel_pos_bias_table_simple` of timm; timm's own Swin takes a grid that
  is finer around offset 0 instead. PVT's position embeddings [h, w, c] are
  interpolated bilinearly, as its model does at other image sizes.

  Args:
    weights: arrays by name, such as 'params/backbone/stage1_position'.
    shapes: wanted shapes by name.

  Returns:
    The weights; those that are no position tables, or cannot be interpolated,
    as they were.
  """
  fitted, changes = dict(weights), []
  for name in sorted(weights.keys() & shapes.keys()):
    old, new = tuple(weights[name].shape), tuple(shapes[name])
    if old == new:
      continue
    for pattern, interpolate in _RULES:
      if re.fullmatch(pattern, name):
        resized = interpolate(np.asarray(weights[name], np.float32), new)
        if resized is not None:
          fitted[name] = resized
          changes.append(f'{name} {old} -> {new}')
  if changes:
    logger.info('Position tables: %s', names.listing({'interpolated': changes}))
  return fitted


def _biases(table, shape):
  """Relative biases [side^2, heads] of a window of another size, or None."""
  if table.ndim != 2 or table.shape[1:] != shape[1:]:
    return None
  old, new = math.isqrt(len(table)), math.isqrt(shape[0])
  if old**2 != len(table) or new**2 != shape[0]:
    return None
  grid = table.reshape(old, old, -1)
  return _resize(grid, (new, new), _cubic_matrix).reshape(shape)


def _embeddings(grid, shape):
  """Position embeddings [h, w, c] of another grid, or None."""
  if grid.ndim != 3 or grid.shape[2:] != shape[2:]:
    return None
  return _resize(grid, shape[:2], resize.linear_matrix)


_RULES = (
  (r'params/backbone/stage\d+_\d+/operator/(attention/)?bias', _biases),
  (r'params/backbone/stage\d+_position', _embeddings),
)


def _resize(grid, size, matrix):
  """[h, w, c] in another size, as `torch.nn.functional.interpolate` does.

  Pixels have their centres at halves; beyond the border the outermost pixel is
  repeated; nothing is smoothed where the new grid is coarser.
  """
  rows, columns = (
    matrix(old, new) for old, new in zip(grid.shape[:2], size, strict=True)
  )
  out = np.einsum('ih,jw,hwc->ijc', rows, columns, grid, optimize=True)
  return out.astype(np.float32)


def _cubic_matrix(old, new):
  return resize.interpolation_matrix(old, new, _cubic, 2)


def _cubic(x, a=-0.75):
  """Cubic convolution, with the a of PyTorch and OpenCV."""
  near = ((a + 2) * x - (a + 3)) * x**2 + 1
  far = ((x - 5) * x + 8) * a * x - 4 * a
  return np.where(x <= 1, near, far)
