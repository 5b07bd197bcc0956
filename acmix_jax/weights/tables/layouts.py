"""How PyTorch's arrays are turned into ours."""

from collections.abc import Callable

import numpy as np


def same(x: np.ndarray) -> np.ndarray:
  """Vectors and tables."""
  return x


def scalar(x: np.ndarray) -> np.ndarray:
  """[1] -> []."""
  return x.reshape(())


def conv(x: np.ndarray) -> np.ndarray:
  """[out, in, kh, kw] -> [kh, kw, in, out]."""
  return x.transpose(2, 3, 1, 0)


def dense(x: np.ndarray) -> np.ndarray:
  """[out, in] or the 1x1 convolution [out, in, 1, 1] -> [in, out]."""
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


def mix(ours: str, official: str) -> list:
  """Rows of what ACmix adds to an attention."""
  return [
    (f'params/{ours}/alpha', f'{official}.rate1', scalar),
    (f'params/{ours}/beta', f'{official}.rate2', scalar),
    (f'params/{ours}/mixing', f'{official}.fc.weight', dense),
    (f'params/{ours}/mixing_bias', f'{official}.fc.bias', same),
    (f'params/{ours}/shifts', f'{official}.dep_conv.weight', conv),
  ]
