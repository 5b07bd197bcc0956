"""How PyTorch's arrays are turned into ours, and back.

An array that cannot be of our shape keeps another one, which the conversion
reports.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Layout:
  """An entry of the official state dict and a variable of ours.

  Attributes:
    to_official: Function of our array to the official one.
    to_ours: Function of the official array and our shape to our array; None:
      the entry is a buffer, which the official code computes and only keeps.
  """

  to_official: Callable[[np.ndarray], np.ndarray]
  to_ours: Callable[[np.ndarray, Shape], np.ndarray] | None = None


def _matrix(x, shape):
  """[out, in] or the 1x1 convolution [out, in, 1, 1] -> [in, out]."""
  del shape
  return x.reshape(x.shape[:2]).T


# Vectors and tables.
same = Layout(lambda x: x, lambda x, shape: x)
# [1] -> [].
scalar = Layout(
  lambda x: x.reshape(1),
  lambda x, shape: x.reshape(shape) if x.size == 1 else x,
)
# [out, in, kh, kw] -> [kh, kw, in, out].
conv = Layout(
  lambda x: x.transpose(3, 2, 0, 1), lambda x, shape: x.transpose(2, 3, 1, 0)
)
# [out, in] -> [in, out].
dense = Layout(lambda x: x.T, _matrix)
# [out, in, 1, 1] -> [in, out].
pointwise = Layout(lambda x: x.T[:, :, None, None], _matrix)
# Batches that a norm has seen, which nobody counts here.
_counter = Layout(lambda x: np.zeros((), np.int64))


def layer(ours: str, official: str, layout: Layout = dense) -> list:
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
    (f'batch_stats/{ours}/mean', f'{official}.num_batches_tracked', _counter),
  ]


def hybrid(ours: str, official: str) -> list:
  """Rows of what ACmix adds to an attention."""
  depthwise = f'{official}.dep_conv.weight'
  return [
    (f'params/{ours}/alpha', f'{official}.rate1', scalar),
    (f'params/{ours}/beta', f'{official}.rate2', scalar),
    (f'params/{ours}/fc_kernel', f'{official}.fc.weight', pointwise),
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
