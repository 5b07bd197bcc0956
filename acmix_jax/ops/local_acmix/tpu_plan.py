"""How the kernels of an ACmix layer for TPU cut it into programs."""

import math
from typing import NamedTuple

from jax.experimental import pallas as pl

from acmix_jax.ops import kernels
from acmix_jax.ops.local_acmix import geometry
from acmix_jax.ops.local_attention import tpu_plan as attention_plan
from acmix_jax.ops.shift_convolution import tpu_plan as convolution_plan


class Plan(NamedTuple):
  """How a layer is cut: a program takes an image. All is static.

  Attributes:
    attention: Plan of the attention.
    convolution: Plan of the convolution.
    channels: Channels of the input.
  """

  attention: attention_plan.Plan
  convolution: convolution_plan.Plan
  channels: int

  @property
  def rows(self) -> int:
    """Rows that a product of the projections takes."""
    return self.convolution.rows

  @property
  def turns(self) -> int:
    """Such products."""
    return self.convolution.turns

  @property
  def size(self) -> tuple[int, int]:
    """Rows and columns of a map: what any product may touch."""
    attention, convolution, _ = self
    rows = max(attention.rows[0], convolution.rows * convolution.turns)
    columns = max(attention.columns, attention.bands[1] * attention.band[1])
    return rows, columns

  @property
  def shape(self) -> tuple[int, int, int]:
    """Rows, columns and channels of queries, keys or values."""
    return *self.size, self.attention.channels

  @property
  def frames(self) -> list[tuple[int, ...]]:
    """Shapes of the frames of maps, and of gradients of maps and outputs."""
    maps = self.convolution.inputs((0, 0)).shape
    return [maps, maps, self.convolution.gradients().shape]

  @property
  def vmem_bytes(self) -> int:
    """What the backward kernel holds at once, up to a few percent."""
    itemsize = self.attention.problem.dtypes[1].itemsize
    *size, features = self.shape

    def fetched(channels):
      return 2 * kernels.map_bytes(size, channels, itemsize)

    maps = 3 * sum(
      kernels.map_bytes(size, features, bytes_) for bytes_ in (itemsize, 4)
    )
    projections = (3, self.channels), features
    return (
      2 * fetched(self.channels)
      + fetched(features)
      + maps
      + 2 * kernels.map_bytes(*projections, itemsize)
      + 2 * kernels.map_bytes(*projections, 4)
      + sum(4 * math.prod(shape) for shape in self.frames)
      + self.convolution.weight_bytes
      + self.attention.logit_bytes
    )

  def cost(self, images: int, *, maps: int, products: tuple[int, int, int]):
    """Flops and bytes of an update.

    Args:
      images: Number of images.
      maps: Inputs, outputs and gradients of them that are read or written.
      products: Products of the projections, the attention and the convolution.
    """
    projections, attended, convolved = products
    attention = self.attention.cost(
      images, queries=0, keys=0, sums=0, products=attended
    )
    convolution = self.convolution.cost(images, convolved, 0, 0)
    *size, features = self.shape
    pixels = images * self.turns * self.rows * size[1]
    projected = 2 * projections * pixels * 3 * self.channels * features
    itemsize = self.attention.problem.dtypes[1].itemsize
    channels = max(self.channels, features)
    moved = kernels.moved_bytes(self.attention.problem.keys, channels, itemsize)
    return pl.CostEstimate(
      flops=projected + attention.flops + convolution.flops,
      transcendentals=attention.transcendentals,
      bytes_accessed=images * maps * moved,
    )


def make_plan(problem: geometry.Problem) -> Plan:
  """The plan of a layer, with whole images."""
  attention = attention_plan.make_plan(problem.attention)
  attention = attention._replace(turns=attention.bands[0])
  heads = problem.attention.heads
  maps, size = (heads,) * 3, problem.attention.keys
  convolution = convolution_plan.make_plan(
    problem.convolution, maps, size, problem.taps, heads
  )
  whole = -(-size[0] // convolution.rows)
  convolution = convolution._replace(turns=whole)
  return Plan(attention, convolution, problem.channels)
