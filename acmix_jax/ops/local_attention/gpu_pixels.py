"""Squares of pixels of the kernels for GPU, walks from them, and memory."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from acmix_jax.ops.local_attention import geometry

# Side of the square of a program, and pixels of a step of its walk.
SIDE = 8
STEP = 64


class Pixels(NamedTuple):
  """A rectangle of pixels, which may lie partly beyond its map.

  Attributes:
    image: Number of the image.
    head: Number of the head.
    first: First row and column.
    shape: Rows and columns of the rectangle.
    size: Rows and columns of the map.
  """

  image: jax.Array
  head: jax.Array
  first: tuple[jax.Array, jax.Array]
  shape: tuple[int, int]
  size: tuple[int, int]

  @property
  def lines(self) -> list[jax.Array]:
    """Numbers of the rows and of the columns."""
    return [
      first + jnp.arange(count, dtype=jnp.int32)
      for first, count in zip(self.first, self.shape, strict=True)
    ]

  @property
  def places(self) -> list[jax.Array]:
    """Row and column of each pixel."""
    rows, columns = self.lines
    return [
      jnp.broadcast_to(line, self.shape).reshape(-1)
      for line in (rows[:, None], columns[None])
    ]

  @property
  def index(self) -> jax.Array:
    """Number of each pixel in its map."""
    rows, columns = self.lines
    return (rows[:, None] * self.size[1] + columns[None]).reshape(-1)

  @property
  def exist(self) -> jax.Array:
    """Whether each pixel is in its map."""
    rows, columns = map(_within, self.lines, self.size)
    return (rows[:, None] & columns[None]).reshape(-1)


def _within(line, size: int):
  return (line >= 0) & (line < size)


def square(size: tuple[int, int], heads: int) -> Pixels:
  """The pixels of this program."""
  return Pixels(
    lax.div(pl.program_id(2), np.int32(heads)),
    lax.rem(pl.program_id(2), np.int32(heads)),
    (pl.program_id(0) * SIDE, pl.program_id(1) * SIDE),
    (SIDE, SIDE),
    size,
  )


def _walk(square, first, span: int, size, body, start):
  """Folds `body(pixels, state)` over a square of side `span`, row by row."""
  width = pl.next_power_of_2(span)
  height = max(1, STEP // width)

  def step(i, state):
    pixels = square._replace(
      first=(first[0] + i * height, first[1]), shape=(height, width), size=size
    )
    return body(pixels, state)

  return lax.fori_loop(
    np.int32(0), np.int32(pl.cdiv(span, height)), step, start
  )


def walk_keys(problem: geometry.Problem, queries: Pixels, body, start):
  """Folds `body(keys, state)` over the keys that a square reaches."""
  first = [pixel * problem.strides - problem.reach for pixel in queries.first]
  span = (SIDE - 1) * problem.strides + problem.extent
  return _walk(queries, first, span, problem.keys, body, start)


def walk_queries(problem: geometry.Problem, keys: Pixels, body, start):
  """Folds `body(queries, state)` over the queries that reach a square."""
  # The first query that reaches the first key: rounded up, and none before 0.
  reached = [
    pixel - problem.reach + problem.strides - 1 for pixel in keys.first
  ]
  first = [
    lax.div(jnp.maximum(pixel, 0), np.int32(problem.strides))
    for pixel in reached
  ]
  span = (SIDE - 1 + 2 * problem.reach) // problem.strides + 1
  return _walk(keys, first, span, problem.queries, body, start)


def _channels(ref, pixels: Pixels):
  """Where the numbers of a head are [pixels, depth], and which exist."""
  depth = ref.shape[-1]
  channel = jnp.arange(_lanes(depth), dtype=jnp.int32)[None]
  exist = pixels.exist[:, None] & (channel < depth)
  return ref.at[
    pixels.image, pixels.index[:, None], pixels.head, channel
  ], exist


def _lanes(depth: int) -> int:
  """Numbers that hold the channels of a head, for products of matrices."""
  return max(16, pl.next_power_of_2(depth))


def load(ref, pixels: Pixels):
  """The numbers of a head [pixels, lanes], 0 where there are none."""
  at, exist = _channels(ref, pixels)
  return triton.load(at, mask=exist, other=0)


def store(ref, pixels: Pixels, x):
  """Writes the numbers of a head [pixels, lanes]."""
  at, exist = _channels(ref, pixels)
  triton.store(at, x.astype(ref.dtype), mask=exist)


def statistic(ref, pixels: Pixels):
  """Where the number of each pixel is."""
  return ref.at[pixels.image, pixels.index, pixels.head]


def line(ref, *index):
  """Where the channels of one position are, and which exist."""
  channel = jnp.arange(_lanes(ref.shape[-1]), dtype=jnp.int32)
  return ref.at[*index, channel], channel < ref.shape[-1]
