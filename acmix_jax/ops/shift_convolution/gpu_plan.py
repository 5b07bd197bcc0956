"""How the kernels for GPU cut a grouped convolution."""

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from jax.experimental import pallas as pl

from acmix_jax.ops.shift_convolution import geometry

WARPS = 4
# Channels of a pixel in a program. On one H200, forward at 56x56x64, bfloat16:
# 0.23 ms, where 64 channels, whole lines of its memory, took 0.37.
_LANES = 16
# Outputs of a group in a program.
_GROUP = 4
# Numbers of one output that a thread sums.
_NUMBERS = 16
# The same where the kernel is the output, which has as many for each tap.
_KERNEL_NUMBERS = 2
# Taps that are unrolled; of a larger kernel, those of a row.
_UNROLLED = 9
# Programs that sum the gradient of the kernel: four for each multiprocessor.
_PROGRAMS = 528


class Plan(NamedTuple):
  """A convolution, or one that transposes it; all is static.

  Tap i of a line of an output pixel y sees the input pixel x where
  x * down == y * up + (i - taps // 2) * dilation.

  Attributes:
    taps: Rows and columns of the kernel.
    inputs: Rows and columns of the maps that are shifted.
    outputs: Rows and columns of the others.
    depth: Channels of a map.
    heads: Maps whose channels lie side by side in a program.
    group: Outputs of a group in a program.
    numbers: Numbers of an output that a thread sums.
    dilation: Pixels between neighbouring taps.
    up: Strides of the convolution.
    down: Strides of the convolution that it transposes.
  """

  taps: tuple[int, int]
  inputs: tuple[int, int]
  outputs: tuple[int, int]
  depth: int
  heads: int
  group: int
  numbers: int
  dilation: int
  up: int
  down: int

  @property
  def channels(self) -> int:
    """Channels of one map in a program."""
    return min(pl.next_power_of_2(self.depth), _LANES)

  @property
  def padded(self) -> bool:
    """Whether a program has channels that its map lacks."""
    return self.depth % self.channels > 0

  @property
  def blocks(self) -> int:
    """Programs that share the channels of a map."""
    return pl.cdiv(self.depth, self.channels)

  @property
  def width(self) -> int:
    """Channels of the maps that lie side by side."""
    return self.heads * self.depth

  @property
  def lanes(self) -> int:
    """Channels in a program."""
    return self.heads * self.channels

  @property
  def pixels(self) -> int:
    """Pixels that a program takes at once."""
    return max(1, 32 * WARPS * self.numbers // self.lanes)

  @property
  def steps(self) -> int:
    """Steps of a walk over the taps."""
    return 1 if math.prod(self.taps) <= _UNROLLED else self.taps[0]

  def step(self, number: Any) -> list[tuple[Any, int]]:
    """Row and column of each tap of a step."""
    rows = self.taps[0] // self.steps
    pairs = itertools.product(range(rows), range(self.taps[1]))
    return [(number * rows + row, column) for row, column in pairs]

  def parts(self, pixels: int, others: int) -> int:
    """Parts of the output pixels, for the gradient of the kernel.

    Args:
      pixels: Output pixels of all images.
      others: Programs for a part.
    """
    return min(pl.cdiv(_PROGRAMS, others), pl.cdiv(pixels, self.pixels))


def make_plan(
  problem: geometry.Problem,
  taps: tuple[int, int],
  sizes: Sequence[tuple[int, int]],
  maps: int,
  outputs: int,
  *,
  transpose: bool = False,
  for_kernel: bool = False,
) -> Plan:
  """The plan of a convolution.

  Args:
    problem: Description of the call.
    taps: Rows and columns of the kernel.
    sizes: Rows and columns of the inputs, and of the outputs.
    maps: Common divisor of the numbers of maps of the inputs.
    outputs: Outputs of a group.
    transpose: Whether the inputs are gradients of what the call returns.
    for_kernel: Whether the gradient of the kernel is the output.
  """
  d, heads = problem.depth, 1
  if d == pl.next_power_of_2(d):
    while maps % (2 * heads) == 0 and 2 * heads * d <= _LANES:
      heads *= 2
  return Plan(
    taps=taps,
    inputs=sizes[0],
    outputs=sizes[1],
    depth=d,
    heads=heads,
    group=max(x for x in range(1, _GROUP + 1) if outputs % x == 0),
    numbers=_KERNEL_NUMBERS if for_kernel else _NUMBERS,
    dilation=problem.dilation,
    up=1 if transpose else problem.strides,
    down=problem.strides if transpose else 1,
  )
