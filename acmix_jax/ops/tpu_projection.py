"""Linear maps of the channels of an image, within a kernel for TPU."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from acmix_jax.ops import kernels


class Slabs(NamedTuple):
  """How the rows of an image are cut into equal slabs, a product each.

  Attributes:
    size: Rows and columns of the image.
    rows: Rows of a slab.
    turns: Number of slabs; the last may go beyond the image.
  """

  size: tuple[int, int]
  rows: int
  turns: int

  @property
  def padded(self) -> tuple[int, int]:
    """Rows and columns of all slabs: whole registers."""
    columns = kernels.round_up(self.size[1], kernels.SUBLANES)
    return self.rows * self.turns, columns

  def for_each(self, body: Callable[['Slab'], None]):
    """Calls body(slab) for one slab after the other."""

    @functools.partial(kernels.repeat, self.turns)
    def _(turn):
      body(Slab(self, turn * self.rows))


class Slab(NamedTuple):
  """Some rows of an image.

  Attributes:
    slabs: What it is one of.
    first: The first row.
  """

  slabs: Slabs
  first: Any

  def read(self, ref: Any) -> jax.Array:
    """The pixels [pixels, channels]; zeros beyond the image."""
    x = ref[0, pl.ds(self.first, self.slabs.rows)]
    height, width = self.slabs.size
    row = self.first + lax.broadcasted_iota(jnp.int32, x.shape, 0)
    column = lax.broadcasted_iota(jnp.int32, x.shape, 1)
    x = jnp.where((row < height) & (column < width), x, 0)
    return x.reshape(-1, x.shape[-1])

  def write(self, ref: Any, x: jax.Array):
    """The reverse of `read`; beyond the image values are arbitrary."""
    x = x.reshape(self.slabs.rows, *ref.shape[2:])
    ref[0, pl.ds(self.first, self.slabs.rows)] = x.astype(ref.dtype)

  def add(self, ref: Any, x: jax.Array):
    """Adds to what there is."""
    x = x.reshape(self.slabs.rows, *ref.shape[2:])
    ref[0, pl.ds(self.first, self.slabs.rows)] += x.astype(ref.dtype)


def project(
  slabs: Slabs, x_ref: Any, kernel_ref: Any, bias_ref: Any, maps: Sequence[Any]
):
  """Writes the maps of an image.

  Args:
    slabs: Its rows.
    x_ref: Image [1, rows, columns, c], as many as `slabs.padded`.
    kernel_ref: Weights of each map [number, c, f].
    bias_ref: Biases [number, f].
    maps: As many [1, rows, columns, f].
  """

  def compute(slab):
    x = slab.read(x_ref)
    for i, ref in enumerate(maps):
      y = kernels.dot(x, kernel_ref[i], 1, 0) + bias_ref[i : i + 1]
      slab.write(ref, y)

  slabs.for_each(compute)


def differentiate(
  slabs: Slabs,
  x_ref: Any,
  kernel_ref: Any,
  dmaps: Sequence[Any],
  dx_ref: Any,
  dkernel_ref: Any,
  dbias_ref: Any,
):
  """Writes the gradient of an image, and adds to those of the weights.

  Args:
    slabs: Rows of the image.
    x_ref: Image.
    kernel_ref: Weights of each map.
    dmaps: Gradients of the maps.
    dx_ref: Gradient of the image.
    dkernel_ref: Gradients of the weights [1, number, c, f].
    dbias_ref: Gradients of the biases [1, number, f].
  """

  def compute(slab):
    x, dx = slab.read(x_ref), 0
    for i, ref in enumerate(dmaps):
      dmap = slab.read(ref)
      dx += kernels.dot(dmap, kernel_ref[i], 1, 1)
      dkernel_ref[0, i] += kernels.dot(x, dmap, 0, 0)
      dbias = dmap.astype(jnp.float32).sum(0, keepdims=True)
      dbias_ref[0, i : i + 1] += dbias
    slab.write(dx_ref, dx)

  slabs.for_each(compute)
