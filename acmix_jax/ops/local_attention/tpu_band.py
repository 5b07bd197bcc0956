"""Bands of queries and their keys within a program of the kernels for TPU."""

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl

from acmix_jax.ops import kernels
from acmix_jax.ops.local_attention import tpu_plan


def fill_queries(plan: tpu_plan.Plan, frame, ref, block):
  """Copies the queries of a block into a frame of zeros."""
  size = [(x - 1) * plan.query_strides + 1 for x in plan.problem.queries]
  _fill(frame, ref, block, size)


def fill_output_gradients(plan: tpu_plan.Plan, frame, ref, block):
  """Copies the gradients of the outputs of a block into a frame of zeros."""
  _fill(frame, ref, block, plan.problem.queries)


def _fill(frame, ref, block, size):
  (_, rows, _, _), (height, width) = frame.shape, size

  @functools.partial(kernels.repeat, rows)
  def _(i):
    inside = block * rows + i < height
    place = jnp.where(inside, i, 0)
    x = ref[0, place, :width].astype(jnp.float32)
    write_row(frame, i, 0, jnp.where(inside, x, 0))


def fill_keys(plan: tpu_plan.Plan, frame, ref):
  """Copies the keys or values of a block into a frame of zeros."""

  @functools.partial(kernels.repeat, plan.fetched)
  def _(i):
    x = ref[0, i, : plan.problem.keys[1]].astype(jnp.float32)
    write_row(frame, i, plan.margin, x)


def write_row(frame, row, column: int, x):
  """Writes a row [columns, channels] of a map into a frame."""
  lanes = slice(0, x.shape[1])
  rows, columns = pl.ds(row, 1), pl.ds(column, len(x))
  kernels.write_frame(frame, rows, columns, lanes, x)


def read_row(frame, row, column: int, width: int, channels: int):
  """The reverse of `write_row`."""
  rows, columns = pl.ds(row, 1), pl.ds(column, width)
  return kernels.read_frame(frame, rows, columns, slice(0, channels))


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

  def queries(self, strides: int = 1):
    """Rows and columns of the queries in those of the program."""
    rows, columns = self.plan.band
    first = pl.multiple_of(self.column * columns * strides, kernels.ALIGN)
    return (
      pl.ds(self.row * rows * strides, rows, strides),
      pl.ds(first, columns, strides),
    )

  def keys(self, first_row):
    """Rows and columns of the keys in a frame that begins with a row."""
    row, column = (
      self.plan.first_keys(band, axis) for axis, band in enumerate(self.place)
    )
    column = pl.multiple_of(column + self.plan.margin, kernels.ALIGN)
    return (
      pl.ds(row - first_row, self.plan.span[0]),
      pl.ds(column, self.plan.span[1]),
    )

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
