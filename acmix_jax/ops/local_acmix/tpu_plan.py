"""How the kernels of an ACmix layer for TPU cut it into programs."""

import math
from typing import NamedTuple

from jax.experimental import pallas as pl

from acmix_jax.ops import kernels, tpu_projection
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
  def slabs(self) -> tpu_projection.Slabs:
    """Rows of an image that the products of the projections take."""
    rows = self.convolution.rows * self.convolution.problem.strides
    size = self.attention.problem.keys
    return tpu_projection.Slabs(size, rows, self.convolution.turns)

  @property
  def shape(self) -> tuple[int, int, int]:
    """Rows, columns and channels of queries, keys or values."""
    return *self.slabs.padded, self.attention.channels

  @property
  def input(self) -> tuple[int, int, int]:
    """Rows, columns and channels that a program touches of the input."""
    return *self.slabs.padded, self.channels

  @property
  def outputs(self) -> tuple[int, int, int]:
    """Rows, columns and channels of the outputs of a program."""
    attention, convolution, _ = self
    rows = max(attention.rows[0], convolution.rows * convolution.turns)
    columns = attention.bands[1] * attention.band[1]
    columns = max(columns, convolution.out_size[1])
    return rows, kernels.round_up(columns, kernels.ALIGN), attention.channels

  @property
  def frames(self) -> list[tuple[int, ...]]:
    """Shapes of the convolution's frames of maps, and of their gradients."""
    maps = self.convolution.inputs((0, 0)).shape
    return [maps, maps, self.convolution.gradients().shape]

  @property
  def vmem_bytes(self) -> int:
    """What the backward kernel holds at once, up to a few percent."""
    itemsize = self.attention.problem.dtypes[1].itemsize
    *size, features = self.shape
    moved = 2 * kernels.map_bytes(size, self.channels, itemsize)
    moved += kernels.map_bytes(self.outputs[:2], features, itemsize)
    projections = (3, self.channels), features
    return (
      2 * moved
      + 3 * kernels.map_bytes(size, features, itemsize)
      + 2 * kernels.map_bytes(*projections, itemsize)
      + 2 * kernels.map_bytes(*projections, 4)
      + sum(4 * math.prod(shape) for shape in self.frames)
      + self.convolution.weight_bytes
      + self.attention.frame_bytes
      + self.attention.logit_bytes
    )

  def cost(
    self,
    images: int,
    *,
    inputs: int,
    outputs: int,
    products: tuple[int, int, int],
  ) -> pl.CostEstimate:
    """Flops and bytes of a kernel.

    Args:
      images: Number of images.
      inputs: Maps like the input that are read or written.
      outputs: Maps like the output that are.
      products: Products of the projections, the attention and the convolution.
    """
    problem, (projections, attended, convolved) = (
      self.attention.problem,
      products,
    )
    attention = self.attention.cost(
      images, queries=0, keys=0, sums=0, products=attended
    )
    convolution = self.convolution.cost(images, convolved, 0, 0)
    projected = images * math.prod(self.shape) * 3 * self.channels
    itemsize = problem.dtypes[1].itemsize
    moved = inputs * kernels.moved_bytes(problem.keys, self.channels, itemsize)
    moved += outputs * kernels.moved_bytes(
      problem.queries, self.attention.channels, itemsize
    )
    return pl.CostEstimate(
      flops=2 * projections * projected + attention.flops + convolution.flops,
      transcendentals=attention.transcendentals,
      bytes_accessed=images * moved,
    )


def make_plan(problem: geometry.Problem) -> Plan:
  """The plan of a layer, with whole images."""
  attention = attention_plan.make_plan(problem.attention)
  attention = attention._replace(
    turns=attention.bands[0], query_strides=problem.attention.strides
  )
  heads = problem.attention.heads
  maps, size = (heads,) * 3, problem.attention.keys
  convolution = convolution_plan.make_plan(
    problem.convolution, maps, size, problem.taps, heads
  )
  whole = -(-problem.attention.queries[0] // convolution.rows)
  convolution = convolution._replace(turns=whole)
  return Plan(attention, convolution, problem.channels)
