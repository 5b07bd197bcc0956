"""How PyTorch's arrays are turned into ours."""

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
