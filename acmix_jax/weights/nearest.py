"""The convolution path of ACmix that is nearest to a convolution."""

from typing import NamedTuple

import numpy as np


class ConvolutionPath(NamedTuple):
  """Weights of stage I and of the convolution path, without biases.

  Attributes:
    projections: Kernels of query, key and value, [3, ci, co].
    fc_kernel: Fully connected layer, [3n, t].
    depthwise_kernel: Shift convolution, [s, s, t, co].
    error: |kernel - nearest| / |kernel|, norms over all entries.
  """

  projections: np.ndarray
  fc_kernel: np.ndarray
  depthwise_kernel: np.ndarray
  error: float


def nearest_path(
  kernel: np.ndarray, num_heads: int, kernel_size: int = 3
) -> ConvolutionPath:
  """Finds the convolution path nearest to a convolution, by least squares.

  Output channel g * n + i of the path is output i of group g, which sees
  channel g of each of the 3n maps of q, k and v alone. The fully connected
  layer makes t = kernel_size**2 maps of these, and so the kernels of a group,
  as a matrix [ci, outputs * taps], have the rank min(3n, t) at most: 9 of 36
  with four heads and 3x3 kernels. A path can have any matrix of this rank, so
  the nearest one is the truncated singular value decomposition of each group.

  The fully connected layer has orthonormal columns, the discrete cosine
  transform over the maps: each projection gets a share of each component.

  Args:
    kernel: Kernel of the convolution, [k, k, ci, co], float.
    num_heads: Heads n of the ACmix layer, a divisor of co.
    kernel_size: Side s of its shift convolution, k or larger, odd as k.

  Raises:
    ValueError: The shift convolution is smaller than the kernel.
  """
  side, _, inputs, outputs = kernel.shape
  if kernel_size < side:
    raise ValueError(
      f'kernel_conv={kernel_size} is smaller than the {side}x{side} kernels of '
      f'the convolutions; kernel_conv={side} is the smallest that works.'
    )
  groups = kernel.astype(np.float64).reshape(side**2, inputs, -1, num_heads)
  groups = groups.transpose(2, 1, 0, 3).reshape(len(groups[0, 0]), inputs, -1)
  left, values, right = np.linalg.svd(groups, full_matrices=False)
  maps, taps = 3 * num_heads, kernel_size**2
  rank = min(maps, taps, values.shape[1])
  lost, total = (np.square(x).sum() for x in (values[:, rank:], values))
  roots = np.sqrt(values[:, :rank])
  to_maps = _cosines(maps, rank)
  # [g, ci, m] and [g, t, side**2 * n].
  projections = left[:, :, :rank] * roots[:, None] @ to_maps.T
  depthwise = np.eye(taps, rank) @ (roots[:, :, None] * right[:, :rank])
  projections = projections.transpose(1, 2, 0).reshape(inputs, 3, outputs)
  depthwise = depthwise.reshape(-1, taps, side, side, num_heads)
  depthwise = depthwise.transpose(2, 3, 1, 0, 4).reshape(side, side, taps, -1)
  margin = (kernel_size - side) // 2
  depthwise = np.pad(depthwise, [(margin, margin)] * 2 + [(0, 0)] * 2)
  return ConvolutionPath(
    projections.transpose(1, 0, 2),
    to_maps @ np.eye(taps, rank).T,
    depthwise,
    float(np.sqrt(lost / total)) if total else 0.0,
  )


def _cosines(size: int, count: int) -> np.ndarray:
  """The first orthonormal vectors of the cosine transform, [size, count]."""
  rows, columns = np.arange(size)[:, None], np.arange(count)[None]
  vectors = np.cos(np.pi * (rows + 0.5) * columns / size)
  return vectors / np.linalg.norm(vectors, axis=0, keepdims=True)
