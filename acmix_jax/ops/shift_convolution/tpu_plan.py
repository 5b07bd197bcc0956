"""How the kernels for TPU cut a grouped convolution into programs."""

import math
from typing import NamedTuple

from jax.experimental import pallas as pl

from acmix_jax.ops import kernels, windows
from acmix_jax.ops.shift_convolution import geometry

# Pixels of a product, and bytes on chip that a program may take.
_PIXELS = 256
_VMEM = 14 * kernels.MIB


class Piece(NamedTuple):
  """Lanes of an array, and where they are in a frame.

  Attributes:
    number: Number of the array.
    source: Lanes of it.
    sheet: Sheet of the frame.
    target: Lanes of that.
  """

  number: int
  source: slice
  sheet: int
  target: slice


def _cut(number: int, source: slice, start: int) -> list[Piece]:
  """Pieces of lanes that begin at one of the lanes of all sheets."""
  pieces, first = [], source.start
  while first < source.stop:
    sheet, lane = divmod(start, kernels.LANES)
    width = min(source.stop - first, kernels.LANES - lane)
    target = slice(lane, lane + width)
    pieces.append(Piece(number, slice(first, first + width), sheet, target))
    first, start = first + width, start + width
  return pieces


class Side(NamedTuple):
  """The pixels that the programs read of one side of the convolution.

  Attributes:
    size: Rows and columns of the map.
    block: Rows of the map that belong to a program.
    margins: Rows and columns that it sees around them.
    columns: Columns of a frame, without its margins.
    pieces: What of the arrays is where in the frame.
    lanes: Lanes of each product in all sheets.
  """

  size: tuple[int, int]
  block: int
  margins: tuple[int, int]
  columns: int
  pieces: tuple[Piece, ...]
  lanes: tuple[slice, ...]

  @property
  def left(self) -> int:
    """Column of the frame with the first one of the map."""
    return kernels.round_up(self.margins[1], kernels.ALIGN)

  @property
  def rows(self) -> int:
    """Rows of the frame."""
    return self.block + 2 * self.margins[0]

  @property
  def shape(self) -> tuple[int, int, int, int]:
    """Sheets, rows, columns and lanes of the frame."""
    columns = self.left + self.columns + self.margins[1]
    return kernels.frame(self.rows, columns, self.lanes[-1].stop)

  @property
  def span(self) -> int:
    """Rows of the map that a program fetches."""
    return min(self.rows, self.size[0])

  def first(self, block):
    """The first of them."""
    first = block * self.block - self.margins[0]
    return first.clip(0, self.size[0] - self.span)


class Plan(NamedTuple):
  """A convolution, cut into programs; all is static.

  Attributes:
    problem: Dtype, groups, strides and dilation.
    maps: Number of maps in each of the arrays.
    size: Rows and columns of the maps.
    taps: Rows and columns of the window.
    outputs: Outputs of a group.
    rows: Rows of outputs of a product.
    turns: Products that follow each other in a program.
  """

  problem: geometry.Problem
  maps: tuple[int, ...]
  size: tuple[int, int]
  taps: tuple[int, int]
  outputs: int
  rows: int
  turns: int

  @property
  def out_size(self) -> tuple[int, int]:
    """Rows and columns of the outputs."""
    strides = self.problem.strides
    rows, columns = (windows.output_size(side, strides) for side in self.size)
    return rows, columns

  @property
  def blocks(self) -> int:
    """Programs of an image."""
    return -(-self.out_size[0] // (self.rows * self.turns))

  @property
  def columns(self) -> int:
    """Columns of outputs of a product: whole registers."""
    return kernels.round_up(self.out_size[1], kernels.SUBLANES)

  @property
  def reach(self) -> tuple[int, int]:
    """Pixels by which the window extends beyond its centre."""
    dilation = self.problem.dilation
    rows, columns = (windows.reach(side, dilation) for side in self.taps)
    return rows, columns

  @property
  def groups(self) -> int:
    """Groups of a product: all, or so few that a register has the outputs."""
    depth = self.problem.depth
    sizes = [
      x for x in range(kernels.ALIGN, depth, kernels.ALIGN) if depth % x == 0
    ]
    sizes.append(depth)
    few = [x for x in sizes if x * self.outputs <= kernels.LANES]
    return max(few, default=sizes[0])

  @property
  def products(self) -> range:
    """Numbers of the products that all groups take."""
    return range(self.problem.depth // self.groups)

  @property
  def channels(self) -> tuple[int, int]:
    """Lanes that a product takes and gives."""
    return sum(self.maps) * self.groups, self.outputs * self.groups

  def outputs_of(self, product: int) -> slice:
    """Channels of the outputs of a product."""
    width = self.channels[1]
    return slice(product * width, (product + 1) * width)

  def inputs(self, margins: tuple[int, int]) -> Side:
    """The maps; a product finds its groups of them side by side."""
    lanes, pieces = self._lanes(self.channels[0]), []
    for product, place in zip(self.products, lanes, strict=True):
      start = place.start
      for number, maps in enumerate(self.maps):
        # Where one product takes all groups, an array stays as it is.
        width, count = self.groups, maps
        if len(self.products) == 1:
          width, count = maps * self.groups, 1
        for i in range(count):
          first = i * self.problem.depth + product * self.groups
          pieces += _cut(number, slice(first, first + width), start)
          start += width
    strides = self.problem.strides
    return Side(
      self.size,
      self.rows * self.turns * strides,
      margins,
      self.columns * strides,
      tuple(pieces),
      lanes,
    )

  def gradients(self) -> Side:
    """The gradient of the outputs; a product finds its groups side by side."""
    lanes = self._lanes(self.channels[1])
    rows, columns = (-(-x // self.problem.strides) for x in self.reach)
    return Side(
      self.out_size,
      self.rows * self.turns,
      (rows, columns),
      self.columns,
      tuple(
        piece
        for i in self.products
        for piece in _cut(0, self.outputs_of(i), lanes[i].start)
      ),
      lanes,
    )

  def _lanes(self, width) -> tuple[slice, ...]:
    """Lanes of each product; each begins with a whole register."""
    step = kernels.round_up(width, kernels.LANES)
    return tuple(slice(i * step, i * step + width) for i in self.products)

  @property
  def weights(self) -> tuple[int, ...]:
    """Shape of the weights with zeros between groups."""
    return (len(self.products), math.prod(self.taps), *self.channels)

  def phases(self):
    """Pixels of a stride, and the taps with which outputs see each.

    Returns:
      Row and column of each pixel, and for each tap that sees it the tap's
      number and how many outputs away it is, in rows and columns.
    """
    strides, dilation = self.problem.strides, self.problem.dilation
    sides = []
    for reach, taps in zip(self.reach, self.taps, strict=True):
      distance = [reach - i * dilation for i in range(taps)]
      sides.append(
        [
          [
            (i, (x + phase) // strides)
            for i, x in enumerate(distance)
            if (x + phase) % strides == 0
          ]
          for phase in range(strides)
        ]
      )
    return [
      (
        (row, column),
        [
          (i * self.taps[1] + j, (down, right))
          for i, down in rows
          for j, right in columns
        ],
      )
      for row, rows in enumerate(sides[0])
      for column, columns in enumerate(sides[1])
    ]

  def cost(self, images: int, products: int, maps: int, outputs: int):
    """Flops and bytes of so many products, reads and writes.

    Args:
      images: Number of images.
      products: Number of products for each tap.
      maps: Times that all maps are read or written.
      outputs: Times that all outputs are.
    """
    itemsize, depth = self.problem.dtype.itemsize, self.problem.depth
    pixels = self.blocks * self.turns * self.rows * self.columns
    moved = outputs * kernels.moved_bytes(
      self.out_size, self.outputs * depth, itemsize
    )
    for count in self.maps:
      moved += maps * kernels.moved_bytes(self.size, count * depth, itemsize)
    return pl.CostEstimate(
      flops=2 * images * products * pixels * math.prod(self.weights),
      transcendentals=0,
      bytes_accessed=images * moved,
    )

  @property
  def vmem_bytes(self) -> int:
    """What the backward kernel holds at once, up to a few percent."""
    itemsize = self.problem.dtype.itemsize
    inputs, gradients = self.inputs((0, 0)), self.gradients()
    fetched = gradients.span * kernels.map_bytes(
      (1, self.out_size[1]), self.outputs * self.problem.depth, itemsize
    )
    for maps in self.maps:
      fetched += (
        2
        * inputs.block
        * kernels.map_bytes(
          (1, self.size[1]), maps * self.problem.depth, itemsize
        )
      )
    frames = 4 * (2 * math.prod(inputs.shape) + math.prod(gradients.shape))
    return 2 * fetched + frames + self.weight_bytes

  @property
  def weight_bytes(self) -> int:
    """What the weights with their zeros take."""
    products, taps, *channels = self.weights
    size = products * taps, channels[0]
    return kernels.map_bytes(size, channels[1], self.problem.dtype.itemsize)


def make_plan(
  problem: geometry.Problem,
  maps: tuple[int, ...],
  size: tuple[int, int],
  taps: tuple[int, int],
  outputs: int,
) -> Plan:
  """The plan whose programs are the largest that the chip has room for."""
  plan = Plan(problem, maps, size, taps, outputs, 1, 1)
  products = -(-plan.out_size[0] // max(1, _PIXELS // plan.columns))
  rows = -(-plan.out_size[0] // products)
  for blocks in range(1, products + 1):
    plan = plan._replace(rows=rows, turns=-(-products // blocks))
    if plan.vmem_bytes <= min(_VMEM, kernels.vmem_budget()):
      break
  return plan
