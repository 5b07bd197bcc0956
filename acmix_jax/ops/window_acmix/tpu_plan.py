"""How the kernels of an ACmix layer of windows for TPU hold an image."""

import math
from typing import NamedTuple

from jax.experimental import pallas as pl

from acmix_jax.ops import kernels, tpu_projection
from acmix_jax.ops.shift_convolution import tpu_plan as convolution_plan
from acmix_jax.ops.shifted_windows import tpu_plan as window_plan
from acmix_jax.ops.window_acmix import geometry


class Plan(NamedTuple):
  """How an image is held; all is static.

  Attributes:
    attention: Plan of the attention.
    convolution: Plan of the convolution.
    channels: Channels of the input.
    size: Rows and columns of the map but for its padding.
  """

  attention: window_plan.Plan
  convolution: convolution_plan.Plan
  channels: int
  size: tuple[int, int]

  @property
  def slabs(self) -> tpu_projection.Slabs:
    """Rows of an image that the products of linear maps take."""
    convolution = self.convolution
    size = self.attention.problem.padded
    return tpu_projection.Slabs(size, convolution.rows, convolution.turns)

  @property
  def input(self) -> tuple[int, int, int]:
    """Rows, columns and channels that a program touches of the input."""
    return *self.slabs.padded, self.channels

  @property
  def shape(self) -> tuple[int, int, int]:
    """Rows, columns and channels of queries, keys, values or outputs."""
    return *self.slabs.padded, self.attention.channels

  @property
  def frames(self) -> list[tuple[int, ...]]:
    """Shapes of the convolution's frames of maps, and of their gradients."""
    maps = self.convolution.inputs((0, 0)).shape
    return [maps, maps, self.convolution.gradients().shape]

  @property
  def vmem_bytes(self) -> int:
    """What the backward kernel holds at once, up to a few percent."""
    itemsize = self.attention.problem.dtype.itemsize
    *size, features = self.shape
    moved = 2 * kernels.map_bytes(size, self.channels, itemsize)
    moved += kernels.map_bytes(size, features, itemsize)
    # Queries, keys and values, with gradients, and both sides of the output
    # projection.
    maps = 8 * kernels.map_bytes(size, features, itemsize)
    weights = [((3, self.channels), features), ((1, features), features)]
    weights = sum(kernels.map_bytes(*x, itemsize + 4) for x in weights)
    taps = (math.prod(self.convolution.taps), sum(self.convolution.maps))
    weights += kernels.map_bytes(taps, features, itemsize + 4)
    offset = 2 * kernels.map_bytes(size, features, 4)
    return (
      2 * (moved + weights + offset)
      + maps
      + sum(4 * math.prod(shape) for shape in self.frames)
      + self.convolution.weight_bytes
      + self.attention.held_bytes
    )

  def cost(
    self,
    images: int,
    *,
    inputs: int,
    outputs: int,
    products: tuple[int, int, int, int],
  ) -> pl.CostEstimate:
    """Flops and bytes of a kernel.

    Args:
      images: Number of images.
      inputs: Maps like the input that are read or written.
      outputs: Maps like the output that are.
      products: Products of the projections, the attention, the convolution,
        and the output projection.
    """
    problem = self.attention.problem
    projections, attended, convolved, projected = products
    attention = self.attention.cost(images, maps=0, products=attended)
    convolution = self.convolution.cost(images, convolved, 0, 0)
    *size, features = self.shape
    terms = 3 * projections * self.channels + projected * features
    maps = (inputs, self.channels), (outputs, features)
    moved = sum(
      times * kernels.moved_bytes(problem.padded, x, problem.dtype.itemsize)
      for times, x in maps
    )
    return pl.CostEstimate(
      flops=2 * images * math.prod(size) * terms * features
      + attention.flops
      + convolution.flops,
      transcendentals=attention.transcendentals,
      bytes_accessed=images * moved,
    )


def make_plan(problem: geometry.Problem) -> Plan:
  """The plan of a layer, with whole images."""
  heads, size = problem.attention.heads, problem.attention.padded
  convolution = convolution_plan.make_plan(
    problem.convolution, (heads,) * 3, size, problem.taps, heads
  )
  whole = -(-size[0] // convolution.rows)
  return Plan(
    window_plan.Plan(problem.attention),
    convolution._replace(turns=whole),
    problem.channels,
    problem.size,
  )
