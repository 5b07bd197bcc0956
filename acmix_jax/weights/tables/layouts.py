"""How PyTorch's arrays are turned into ours.

A layout maps (official array, our shape) to our array. An array that cannot be
of our shape keeps another one, which the conversion reports.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Shape = tuple[int, ...]


def same(x: np.ndarray, shape: Shape) -> np.ndarray:
  """Vectors and tables."""
  del shape
  return x


def scalar(x: np.ndarray, shape: Shape) -> np.ndarray:
  """[1] -> []."""
  return x.reshape(shape) if x.size == 1 else x


def conv(x: np.ndarray, shape: Shape) -> np.ndarray:
  """[out, in, kh, kw] -> [kh, kw, in, out]."""
  del shape
  return x.transpose(2, 3, 1, 0)


def dense(x: np.ndarray, shape: Shape) -> np.ndarray:
  """[out, in] or the 1x1 convolution [out, in, 1, 1] -> [in, out]."""
  del shape
  return x.reshape(x.shape[:2]).T


def layer(ours: str, official: str, layout: Callable = dense) -> list:
  """Rows of a linear layer or convolution."""
  return [
    (f'params/{ours}/kernel', f'{official}.weight', layout),
    (f'params/{ours}/bias', f'{official}.bias', same),
  ]


def norm(ours: str, official: str) -> list:
  """Rows of a normalisation, with the running statistics it may have."""
  return [
    (f'params/{ours}/scale', f'{official}.weight', same),
    (f'params/{ours}/bias', f'{official}.bias', same),
    (f'batch_stats/{ours}/mean', f'{official}.running_mean', same),
    (f'batch_stats/{ours}/var', f'{official}.running_var', same),
  ]


def hybrid(ours: str, official: str) -> list:
  """Rows of what ACmix adds to an attention."""
  depthwise = f'{official}.dep_conv.weight'
  return [
    (f'params/{ours}/alpha', f'{official}.rate1', scalar),
    (f'params/{ours}/beta', f'{official}.rate2', scalar),
    (f'params/{ours}/fc_kernel', f'{official}.fc.weight', dense),
    (f'params/{ours}/fc_bias', f'{official}.fc.bias', same),
    (f'params/{ours}/depthwise_kernel', depthwise, conv),
  ]


def renamed(
  state_dict: Mapping[str, Any], rules: Sequence[tuple[str, str | Callable]]
) -> dict[str, Any]:
  """The entries of another library's model under the official names.

  Args:
    state_dict: arrays by name.
    rules: pairs of `re.sub`, applied in turn to each name.
  """
  results = {}
  for name, value in state_dict.items():
    for pattern, official in rules:
      name = re.sub(pattern, official, name)
    results[name] = value
  return results


def within(part: str, table: list) -> list:
  """Rows of a part alone, whose official names then start with it."""
  return [
    (ours, f'{part}.{official}', layout)
    for ours, official, layout in table
    if ours.split('/')[1] == part
  ]
