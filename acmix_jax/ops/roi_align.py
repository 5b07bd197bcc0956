"""RoIAlign on the levels of a pyramid, exact for regions of any size.

The samples of a bin form a grid, and bilinear interpolation is a product of
one weight by row and one by column: the mean over a bin is W_y F W_x^T, with
the sums of the weights of its samples as W_y and W_x. Those sums are closed
(`bin_weights`), so that the number of samples costs nothing and has no limit.

A box is computed tile by tile of its map. Boxes are sorted by level and number
of tiles, and a few take a tile each at a time: the work is that of the sizes
that boxes have, though shapes are fixed. The backward pass adds tiles to the
gradient of the maps in the same order, and keeps nothing but the boxes.

Source: He et al. 2017, arXiv 1703.06870, section 3; mmcv 1.7 RoIAlign
(aligned, sampling_ratio=0) and mmdetection 2.28 SingleRoIExtractor.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int32

from acmix_jax.ops import bin_weights, sharding
from acmix_jax.ops import boxes as box_ops

# Pixels of a side of a tile. On CPU tiles of 8 px take as long up to a tenth
# more or less; elsewhere fewer steps are better.
_TILE = 16
# Boxes that take a tile each at once. With 128 an update of mask_rcnn resnet50
# went from 119 to 81 ms on a GPU (H200, 8 images of 800 x 1344 px), but a CPU
# takes three times as long, and what a TPU sums leaves the chip.
_TOGETHER = {'cuda': 128, 'default': 32}


def levels_of(
  boxes: Float[Array, '*n 4'], num_levels: int = 4, finest_side: float = 56.0
) -> Int32[Array, '*n']:
  """Level of the pyramid from which the features of a box are taken.

  floor(log2(sqrt(w * h) / finest_side + 1e-6)), at least 0 and at most
  num_levels - 1: boxes of 112 px and more are on level 1, of 224 on level 2.

  Args:
    boxes: Boxes in pixels of the image.
    num_levels: Levels of the pyramid.
    finest_side: Side in pixels up to twice of which boxes are on level 0.
  """
  sides = jnp.sqrt(box_ops.area(boxes)) / finest_side + 1e-6
  # Compared with powers of 2: logarithms of them are not exact everywhere.
  return sum(
    ((sides >= 2**level).astype(jnp.int32) for level in range(1, num_levels)),
    jnp.zeros(sides.shape, jnp.int32),
  )


def roi_align(
  features: Sequence[Float[Array, 'b _h _w c']],
  boxes: Float[Array, 'b r 4'],
  strides: Sequence[int],
  output_size: int,
  finest_side: float = 56.0,
) -> Float[Array, 'b r {output_size} {output_size} c']:
  """Mean features of the output_size * output_size bins of each box.

  Pixel i of a map is at (i + .5) * stride. A bin is averaged over
  ceil(side of the box / output_size) samples in each direction, sides in
  pixels of the map; an empty box gives 0. Samples more than a pixel beyond
  the outermost pixels of the map are 0, others outside are those at its edge.
  Sums are kept in float32. Boxes get no gradient. Images are split over the
  devices of the mesh in context, see `sharding.split_images`.

  Places of samples are counted from the edge of the map, as in the sources, and
  lose the same digits: for features near 1 of an image of 800 x 1344 px, those
  in float32 are within 1e-4 of those in float64, as are torchvision's.

  Args:
    features: Maps of each level.
    boxes: Boxes in pixels of the image. Rows of padding cost nothing if they
      are empty.
    strides: Pixels of the image between pixels of each map.
    output_size: Bins of a side.
    finest_side: See `levels_of`.

  Raises:
    ValueError: there are not as many maps as strides.
  """
  if len(features) != len(strides):
    raise ValueError(
      f'roi_align: {len(features)} maps and {len(strides)} strides '
      f'{tuple(strides)}; give the stride of each map.'
    )
  shapes = tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in features)
  problem = _Problem(shapes, tuple(strides), output_size, finest_side)
  return _align(problem, tuple(features), lax.stop_gradient(boxes))


class _Problem(NamedTuple):
  """The arguments of `roi_align` that are static, and shapes of its maps.

  `together` is the one of `_TOGETHER` for the platform, once that is known.
  """

  maps: tuple[jax.ShapeDtypeStruct, ...]
  strides: tuple[int, ...]
  output_size: int
  finest_side: float
  together: int = 0


class _Plan(NamedTuple):
  """The boxes of all images in the order of the work, [chunks, boxes]."""

  image: Any
  level: Any
  # Ends of the box on its map, in the coordinate in which pixel i is at i.
  rows: tuple[Any, Any]
  columns: tuple[Any, Any]
  # Its first tile, the tiles of a row of tiles, and of all rows.
  top: Any
  left: Any
  tiles_wide: Any
  tiles: Any


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _align(problem, features, boxes):
  run = functools.partial(_on_platform, _means, problem)
  return sharding.split_images(run, features, boxes)


def _align_forward(problem, features, boxes):
  return _align(problem, features, boxes), boxes


def _align_backward(problem, boxes, to_out):
  run = functools.partial(_on_platform, _spread, problem)
  to_features = sharding.split_images(run, to_out, boxes)
  return to_features, jnp.zeros_like(boxes)


_align.defvjp(_align_forward, _align_backward)


def _on_platform(function, problem, *arrays):
  forms = {
    platform: functools.partial(function, problem._replace(together=count))
    for platform, count in _TOGETHER.items()
  }
  return lax.platform_dependent(*arrays, **forms)


@jax.named_scope('roi_align')
def _means(problem, features, boxes):
  plan, order = _make_plan(problem, boxes)
  bins, channels = problem.output_size, features[0].shape[-1]
  shape = (*plan.image.shape, bins, bins, channels)
  out = sharding.vary_alike(jnp.zeros(shape, jnp.float32), features, boxes)[0]
  for level, x in enumerate(features):

    def add(means, place, by_row, by_column, x=x):
      tiles = _windows(x, *place).astype(jnp.float32)
      n, h, w, c = tiles.shape
      by_rows = jnp.matmul(
        by_row, tiles.reshape(n, h, w * c), precision='highest'
      ).reshape(n, bins, 1, w, c)
      return means + jnp.sum(by_rows * by_column[:, None, :, :, None], axis=3)

    def add_means(out, chunk, over_tiles, add=add):
      # Not into `out` tile by tile, which may be too large for the chip.
      means = sharding.vary_alike(jnp.zeros(shape[1:], jnp.float32), out)[0]
      return out.at[chunk].add(over_tiles(add, means))

    out = _visit(problem, plan, level, add_means, out)
  out = out.reshape(-1, *shape[2:])
  places = jnp.zeros_like(order).at[order].set(jnp.arange(len(order)))
  b, r, _ = boxes.shape
  out = out[places[: b * r]].reshape(b, r, *shape[2:])
  return out.astype(features[0].dtype)


@jax.named_scope('roi_align')
def _spread(problem, to_out, boxes):
  """The transpose of `_means` in the features."""
  plan, order = _make_plan(problem, boxes)
  b, r, bins, _, channels = to_out.shape
  to_out = to_out.reshape(b * r, bins, bins, channels)
  to_out = to_out[jnp.minimum(order, b * r - 1)].astype(jnp.float32)
  to_out = to_out.reshape(*plan.image.shape, bins, bins, channels)
  results = []
  for level, like in enumerate(problem.maps):

    def add(to_x, place, by_row, by_column, means):
      tile = by_row.shape[-1], by_column.shape[-1]
      by_rows = jnp.sum(
        means[:, :, :, None] * by_column[:, None, :, :, None], axis=2
      )
      n = len(means)
      tiles = jnp.matmul(
        by_row.swapaxes(1, 2), by_rows.reshape(n, bins, -1), precision='highest'
      )
      return _add_windows(to_x, tiles.reshape(n, *tile, channels), *place)

    def add_tiles(to_x, chunk, over_tiles, add=add):
      return over_tiles(functools.partial(add, means=to_out[chunk]), to_x)

    zeros = jnp.zeros((b, *like.shape[1:]), jnp.float32)
    zeros = sharding.vary_alike(zeros, to_out, boxes)[0]
    to_x = _visit(problem, plan, level, add_tiles, zeros)
    results.append(to_x.astype(like.dtype))
  return tuple(results)


def _make_plan(problem, boxes):
  """A plan, and the index of each box in it among those of all images.

  Indices from b * r on are rows of padding.
  """
  b, r, _ = boxes.shape
  flat = boxes.reshape(-1, 4).astype(jnp.float32)
  level = levels_of(flat, len(problem.maps), problem.finest_side)
  scale = jnp.asarray([1 / s for s in problem.strides], jnp.float32)[level]
  x1, y1, x2, y2 = jnp.moveaxis(flat * scale[:, None] - 0.5, -1, 0)
  sizes = jnp.asarray([x.shape[1:3] for x in problem.maps], jnp.int32)[level]
  top, tiles_high = _tiles(y1, y2, sizes[:, 0])
  left, tiles_wide = _tiles(x1, x2, sizes[:, 1])
  tiles = tiles_high * tiles_wide
  image = jnp.repeat(jnp.arange(b), r)
  rows = [image, level, (y1, y2), (x1, x2), top, left, tiles_wide, tiles]
  pad = -len(flat) % problem.together
  plan = jax.tree.map(lambda x: jnp.pad(x, (0, pad)), _Plan(*rows))
  order = jnp.lexsort((plan.tiles, plan.level))
  plan = jax.tree.map(lambda x: x[order].reshape(-1, problem.together), plan)
  return plan, order


def _tiles(start, stop, size):
  """First pixel that a segment may touch, and the number of its tiles."""
  last = (size - 1).astype(start.dtype)
  first, last = (
    jnp.clip(jnp.floor(x), 0, last).astype(jnp.int32) for x in (start, stop + 1)
  )
  count = (last - first) // jnp.minimum(_TILE, size) + 1
  return first, jnp.where(stop > start, count, 0)


def _visit(
  problem: _Problem,
  plan: _Plan,
  level: int,
  step: Callable[..., Any],
  carry: Any,
) -> Any:
  """Calls carry = step(carry, chunk, over_tiles) for the chunks of a level.

  There over_tiles(add, start) calls sum = add(sum, place, by_row, by_column)
  for the tiles. Of each box of the chunk, place is image, row and column of a
  tile, and the weights are [boxes, bins, pixels]: 0 for boxes that have no tile
  left, or none on the level.
  """
  _, h, w, _ = problem.maps[level].shape
  weigh = functools.partial(_tile_weights, problem.output_size)

  def visit_chunk(chunk, carry):
    here = jax.tree.map(lambda x: x[chunk], plan)
    tiles = jnp.where(here.level == level, here.tiles, 0)
    wide = jnp.maximum(here.tiles_wide, 1)

    def over_tiles(add, start):
      def visit_tile(tile, sums):
        row, by_row = weigh(here.rows, here.top, tile // wide, h)
        column, by_column = weigh(here.columns, here.left, tile % wide, w)
        by_row = jnp.where((tile < tiles)[:, None, None], by_row, 0)
        return add(sums, (here.image, row, column), by_row, by_column)

      return lax.fori_loop(0, jnp.max(tiles), visit_tile, start)

    return step(carry, chunk, over_tiles)

  start = jnp.sum(plan.level < level) // problem.together
  stop = -(-jnp.sum(plan.level <= level) // problem.together)
  return lax.fori_loop(start, stop, visit_chunk, carry)


def _tile_weights(bins, segment, first, tile, size):
  """First pixel of a tile within the map, and the weights of its pixels."""
  side = min(_TILE, size)
  begin = first + tile * side
  start = jnp.clip(begin, 0, size - side)
  pixels = start[:, None] + jnp.arange(side)[None]
  weights = bin_weights.bin_weights(*segment, bins, pixels, 0, size - 1)
  # The last tile is moved into the map, over pixels of the one before.
  new = (pixels >= begin[:, None])[:, None]
  return start, jnp.where(new, weights, 0)


def _windows(x, image, row, column):
  """Tiles [n, side, side, c] of the maps x [b, h, w, c]."""
  _, h, w, c = x.shape
  sizes = 1, min(_TILE, h), min(_TILE, w), c
  numbers = lax.GatherDimensionNumbers(
    offset_dims=(1, 2, 3),
    collapsed_slice_dims=(0,),
    start_index_map=(0, 1, 2),
  )

  def gather(x, places):
    return lax.gather(x, places, numbers, sizes, mode='promise_in_bounds')

  def one_by_one(x, places):
    return lax.map(lambda p: lax.dynamic_slice(x, (*p, 0), sizes)[0], places)

  # The compiler for TPU would copy a map that is larger than on-chip memory
  # before each gather.
  places = jnp.stack([image, row, column], axis=-1)
  return lax.platform_dependent(x, places, tpu=one_by_one, default=gather)


def _add_windows(x, tiles, image, row, column):
  """Adds tiles to the maps x where `_windows` takes them from."""
  numbers = lax.ScatterDimensionNumbers(
    update_window_dims=(1, 2, 3),
    inserted_window_dims=(0,),
    scatter_dims_to_operand_dims=(0, 1, 2),
  )
  return lax.scatter_add(
    x,
    jnp.stack([image, row, column], axis=-1),
    tiles,
    numbers,
    mode='promise_in_bounds',
  )
