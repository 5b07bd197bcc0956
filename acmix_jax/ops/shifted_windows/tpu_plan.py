"""How the kernels of window attention for TPU read a map."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, Float32, Int32

from acmix_jax.ops import kernels
from acmix_jax.ops.shifted_windows import geometry

_MASKED = np.float32(-1e30)


class Plan(NamedTuple):
  """How a map is read; all is static.

  Attributes:
    problem: Sizes of the map and of the windows.
  """

  problem: geometry.Problem

  @property
  def span(self) -> int:
    """Columns that are read of a window."""
    return kernels.round_up(self.problem.window_size, kernels.ALIGN)

  @property
  def tokens(self) -> int:
    """Pixels that are read of a window."""
    return self.problem.window_size * self.span

  @property
  def channels(self) -> int:
    """Channels of the queries."""
    return self.problem.heads * self.problem.depth

  @property
  def groups(self) -> list[slice]:
    """Lanes of whole heads that a product takes."""
    return kernels.groups_of_heads(self.problem.heads, self.problem.depth)

  @property
  def frame(self) -> tuple[int, int, int, int]:
    """Shape of a frame: of each group the lanes of a row of windows.

    There are columns to read beyond the last window.
    """
    rows, columns = self.problem.window_size, self.problem.padded[1]
    columns = kernels.round_up(columns, kernels.ALIGN) + kernels.ALIGN
    return len(self.groups), rows, columns, self.groups[0].stop

  def masks(
    self,
  ) -> tuple[Float32[np.ndarray, 'p t t'], Int32[np.ndarray, 'r c']]:
    """What is added to the logits of a window, and which one to each."""
    side, regions = self.problem.window_size, self.problem.regions
    if regions is None:
      regions = np.zeros(self.problem.padded, np.int32)
    patterns, index = np.unique(
      geometry.cut(regions[None], side)[0], axis=0, return_inverse=True
    )
    beyond = (0, 0), (0, 0), (0, self.span - side)
    patterns = patterns.reshape(-1, side, side)
    inside = np.pad(np.ones_like(patterns, bool), beyond)
    region = np.pad(patterns, beyond).reshape(-1, self.tokens)
    seen = region[:, :, None] == region[:, None]
    seen &= inside.reshape(-1, 1, self.tokens)
    index = index.reshape(self.problem.windows).astype(np.int32)
    return np.where(seen, np.float32(0), _MASKED), index

  def pad_bias(self, bias: Float[Array, 'n t t']) -> jax.Array:
    """[n, t, t] -> [n, tokens, tokens]."""
    side = self.problem.window_size
    bias = bias.reshape(-1, side, side, side, side)
    beyond = 0, self.span - side
    bias = jnp.pad(bias, ((0, 0), (0, 0), beyond, (0, 0), beyond))
    return bias.reshape(-1, self.tokens, self.tokens)

  def cut_bias(self, bias: jax.Array) -> jax.Array:
    """The reverse of `pad_bias`."""
    side = self.problem.window_size
    bias = bias.reshape(-1, side, self.span, side, self.span)
    return bias[:, :, :side, :, :side].reshape(-1, side**2, side**2)

  @property
  def vmem_bytes(self) -> int:
    """What the backward kernel holds at once, up to a few percent."""
    problem, itemsize = self.problem, self.problem.dtype.itemsize
    size = problem.window_size, problem.padded[1]
    maps = 2 * kernels.map_bytes(size, 3 * self.channels, itemsize)
    maps += kernels.map_bytes(size, self.channels, itemsize)
    return 2 * maps + self.held_bytes

  @property
  def held_bytes(self) -> int:
    """What it holds beside maps that are fetched or stored."""
    problem = self.problem
    groups, *side, lanes = self.frame
    frames = 4 * groups * kernels.map_bytes(side, lanes, 4)
    bias = kernels.map_bytes((problem.heads, self.tokens), self.tokens, 4)
    masks = (len(self.masks()[0]), self.tokens)
    masks = kernels.map_bytes(masks, self.tokens, 4)
    heads = self.groups[0].stop // problem.depth
    logits = 6 * kernels.map_bytes((heads, self.tokens), self.tokens, 4)
    return frames + 4 * bias + 2 * masks + logits

  def cost(self, images: int, *, maps: int, products: int) -> pl.CostEstimate:
    """Flops and bytes of so many reads and writes, and products.

    Args:
      images: Number of images.
      maps: Queries, keys, values, outputs, and gradients of them.
      products: Products of queries and keys.
    """
    problem = self.problem
    windows = images * math.prod(problem.windows)
    pairs = windows * self.tokens**2 * problem.heads
    moved = images * kernels.moved_bytes(
      problem.padded, self.channels, problem.dtype.itemsize
    )
    return pl.CostEstimate(
      flops=2 * products * pairs * self.groups[0].stop,
      transcendentals=pairs,
      bytes_accessed=maps * moved,
    )
