"""Bands of queries and their keys within a program of the kernels for TPU."""

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl

from acmix_jax.ops import kernels
from acmix_jax.ops.local_attention import geometry, tpu_plan


class Band(NamedTuple):
  """A band of queries within a program.

  Attributes:
    plan: Sizes of a band and of its program.
    block: Number of the program's rows.
    row: Number of the band in the program.
    column: Number of the band along the columns.
  """

  plan: tpu_plan.Plan
  block: Any
  row: Any
  column: Any

  @property
  def place(self):
    """Row and column among the bands of the map."""
    return self.block * self.plan.turns + self.row, self.column

  def queries(self, lanes: slice):
    """Index of the queries in those of the program."""
    rows, columns = self.plan.band
    first = pl.multiple_of(self.column * columns, kernels.SUBLANES)
    return 0, pl.ds(self.row * rows, rows), pl.ds(first, columns), lanes

  def keys(self, first_row, lanes: slice):
    """Index of the keys in rows that begin with `first_row` of the map."""
    row, column = self.first_keys()
    row, column = row - first_row, pl.multiple_of(column, kernels.SUBLANES)
    return (
      pl.ds(row, self.plan.span[0]),
      pl.ds(column, self.plan.span[1]),
      lanes,
    )

  def first_keys(self):
    """Row and column of the first key."""
    return [
      self.plan.first_keys(band, axis) for axis, band in enumerate(self.place)
    ]

  def read_queries(self, ref, lanes: slice):
    """The queries [pixels, lanes]; zeros beyond the map."""
    first = [
      band * size for band, size in zip(self.place, self.plan.band, strict=True)
    ]
    return inside(ref[self.queries(lanes)], first, self.plan.problem.queries)

  def read_values(self, ref, lanes: slice):
    """The values [pixels, lanes]; zeros beyond the map."""
    first_row = self.plan.first_fetched(self.block)
    x = ref[0, *self.keys(first_row, lanes)]
    return inside(x, self.first_keys(), self.plan.problem.keys)

  def read_keys(self, ref, slopes_ref, lanes: slice):
    """The keys less their positions, scaled: [pixels, lanes].

    Returns:
      Numbers of the keys' dtype whose sum they are: 16 bits are too few for
      positions, which grow with the map while those of a window differ little.
    """
    problem, dtype = self.plan.problem, ref.dtype
    first_row = self.plan.first_fetched(self.block)
    x = ref[0, *self.keys(first_row, lanes)].astype(jnp.float32)
    for axis, first in enumerate(self.first_keys()):
      line = first + lax.broadcasted_iota(jnp.int32, x.shape, axis)
      position = line.astype(jnp.float32) - geometry.middle(problem.keys[axis])
      x -= position * slopes_ref[axis : axis + 1, lanes][None]
    x *= problem.depth**-0.5
    x = inside(x, self.first_keys(), problem.keys)
    if dtype == jnp.float32:
      return [x]
    rounded = x.astype(dtype)
    return [rounded, (x - rounded.astype(jnp.float32)).astype(dtype)]

  def log_counts(self, rows_ref, columns_ref):
    """How often each key is in each window [queries, keys]."""
    row, column = self.place
    rows, columns = rows_ref[row], columns_ref[column]
    return (rows[:, None] + columns[None]).reshape(-1, rows.shape[-1])


def for_each_band(plan: tpu_plan.Plan, block, body):
  """Calls body(band) for the bands of a block, one after the other."""
  rows, columns = plan.bands
  # Of the last blocks there may be none left.
  count = (rows - block * plan.turns).clip(0, plan.turns) * columns
  static = isinstance(count, np.integer)

  @functools.partial(kernels.repeat, int(count) if static else count)
  def _(number):
    # Those of jnp ask which chip it is, which a machine without one can't say.
    size = number.dtype.type(columns)
    row, column = lax.div(number, size), lax.rem(number, size)
    body(Band(plan, block, row, column))


def inside(x, first, size):
  """Flattens [rows, columns, lanes]; zeros beyond a map of `size` pixels."""
  row, column = (
    first[axis] + lax.broadcasted_iota(jnp.int32, x.shape, axis)
    for axis in (0, 1)
  )
  x = jnp.where((row < size[0]) & (column < size[1]), x, 0)
  return x.reshape(-1, x.shape[-1])
