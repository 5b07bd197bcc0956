"""Sizes of a local attention, and what its implementations share."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Float32, Int

from acmix_jax.ops import sharding, windows


class Problem(NamedTuple):
  """Static description of a call.

  Attributes:
    queries: Rows and columns of the map of queries.
    keys: Rows and columns of the map of keys.
    heads: Number of heads.
    depth: Channels of a head.
    dtypes: Dtypes of queries, keys and values.
    kernel_size: Odd side of the window in keys.
    strides: Pixels between queries.
    dilation: Pixels between neighbouring keys of a window.
    varying: Whether the arrays differ between the devices of a caller's
      `jax.shard_map` that checks this.
    counted: Whether the number of images is known: a program that is exported
      may take any.
  """

  queries: tuple[int, int]
  keys: tuple[int, int]
  heads: int
  depth: int
  dtypes: tuple[np.dtype, np.dtype, np.dtype]
  kernel_size: int
  strides: int
  dilation: int
  varying: bool = False
  counted: bool = True

  @property
  def reach(self) -> int:
    """Pixels by which a window extends beyond its centre."""
    return windows.reach(self.kernel_size, self.dilation)

  @property
  def extent(self) -> int:
    """Pixels from the first to the last key of a line of a window."""
    return 2 * self.reach + 1


def describe(
  q: Float[Array | jax.ShapeDtypeStruct, 'b ho wo n d'],
  k: Float[Array | jax.ShapeDtypeStruct, 'b h w n d'],
  v: Float[Array | jax.ShapeDtypeStruct, 'b h w n d'],
  kernel_size: int,
  strides: int,
  dilation: int,
) -> Problem:
  """The problem of these queries, keys and values."""
  return Problem(
    queries=q.shape[1:3],
    keys=k.shape[1:3],
    heads=k.shape[3],
    depth=k.shape[4],
    dtypes=(q.dtype, k.dtype, v.dtype),
    kernel_size=kernel_size,
    strides=strides,
    dilation=dilation,
    varying=sharding.varies(q, k, v),
    counted=isinstance(q.shape[0], int),
  )


def log_counts(
  query: Int[Array | np.ndarray, '*#pixels'],
  key: Int[Array | np.ndarray, '*#pixels'],
  size: int,
  problem: Problem,
) -> Float32[Array, '*pixels']:
  """Log of how often `key` occurs in the reflected window of `query`.

  A key beyond the border is a pixel of the map seen again in the mirror. Added
  to the logits of the pixels that exist, this gives the attention over a
  window that reflects, with no padding of keys and values. For a square window
  the logarithms of rows and columns add up.

  Args:
    query: Pixels in the centre of a window.
    key: Pixels of any kind, broadcast against `query`.
    size: Pixels of the line.
    problem: Description of the window.

  Returns:
    -2e30 where the key is not in the window or not in the line: finite, for
    `jax_debug_infs`, and its exponential is 0 beside that of any real logit.
  """
  last = size - 1

  def seen(distance, mirrored):
    distance = jnp.abs(distance)
    multiple = lax.rem(distance, jnp.full_like(distance, problem.dilation)) == 0
    return ((distance <= problem.reach) & multiple & mirrored).astype(
      jnp.float32
    )

  exists = (key >= 0) & (key <= last)
  count = (
    seen(key - query, exists)
    + seen(key + query, exists & (key > 0))
    + seen(2 * last - key - query, exists & (key < last))
  )
  log_count = jnp.log(jnp.maximum(count, 1))
  return jnp.where(count > 0, log_count, np.float32(-2e30))


def middle(size: int) -> float:
  """Where positions along a line of pixels are zero."""
  return (size - 1) / 2


def _positions(k) -> np.ndarray:
  """Row and column of each pixel [h, w, 2], from the middle of the map."""
  lines = [np.arange(size) - middle(size) for size in k.shape[1:3]]
  return np.stack(np.meshgrid(*lines, indexing='ij'), -1)


def relative_keys(
  k: Float[Array, 'b h w n d'], slopes: Float[Array, '2 d']
) -> Float[Array, 'b h w n d']:
  """The keys less their positions, scaled by d**-0.5, in at least float32."""
  dtype = jnp.float64 if k.dtype == jnp.float64 else jnp.float32
  places = jnp.asarray(_positions(k), dtype)
  position = jnp.matmul(places, slopes.astype(dtype), precision='highest')
  return (k.astype(dtype) - position[None, :, :, None]) * k.shape[-1] ** -0.5


def with_positions(attend: Callable) -> Callable:
  """An attention of (problem, q, relative keys, v) as one of slopes, too."""

  def run(problem, q, k, v, slopes):
    return attend(problem, q, relative_keys(k, slopes), v)

  return run
