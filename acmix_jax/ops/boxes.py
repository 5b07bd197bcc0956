"""Boxes x1 y1 x2 y2 in pixels: the coder, areas and overlaps, in float32.

Functions of two sets of boxes broadcast: `iou(a[:, None], b[None])` holds all
pairs. Sides are x2 - x1 and y2 - y1, without the one that older code adds.

Source: mmdetection 2.28 DeltaXYWHBBoxCoder, bbox_overlaps and GIoULoss.
"""

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Shaped

# The least union of two boxes, in square pixels.
LEAST_AREA = 1e-6
# A decoded side is at most 1000 / 16 times that of its box, and at least
# 16 / 1000 of it.
LARGEST_LOG_RATIO = math.log(1000 / 16)


def product(
  x: Float32[Array, '*#s'], y: Float32[Array, '*#s']
) -> Float32[Array, '*s']:
  """Product that is rounded before anything is added to it.

  A compiler may round x * y + z once, and boxes at a threshold then fall on
  its other side; two compiled copies of one overlap may even differ. Nothing
  fuses across the maximum, which no finite product is below.
  """
  return jnp.maximum(x * y, jnp.finfo(jnp.float32).min)


def area(boxes: Float[Array, '*n 4']) -> Float32[Array, '*n']:
  """Areas of boxes in square pixels; of one inverted side, below 0."""
  x1, y1, x2, y2 = _sides(boxes)
  return product(x2 - x1, y2 - y1)


def clip(
  boxes: Float[Array, '*n 4'], size: Shaped[Array | np.ndarray, '*_s 2']
) -> Float32[Array, '*n 4']:
  """Moves corners into an image, 0 <= x <= w and 0 <= y <= h.

  Args:
    boxes: Boxes.
    size: Height and width of the image, in pixels: [2], or one that broadcasts
      with the boxes, such as [b, 1, 2] with [b, n, 4].
  """
  h, w = jnp.moveaxis(jnp.asarray(size, jnp.float32), -1, 0)
  x1, y1, x2, y2 = _sides(boxes)
  x1, x2 = (jnp.clip(x, 0, w) for x in (x1, x2))
  y1, y2 = (jnp.clip(y, 0, h) for y in (y1, y2))
  return jnp.stack([x1, y1, x2, y2], axis=-1)


def intersection(
  a: Float[Array, '*#n 4'], b: Float[Array, '*#n 4']
) -> Float32[Array, '*n']:
  """Area that a and b share, in square pixels."""
  ax1, ay1, ax2, ay2 = _sides(a)
  bx1, by1, bx2, by2 = _sides(b)
  width = jnp.minimum(ax2, bx2) - jnp.maximum(ax1, bx1)
  height = jnp.minimum(ay2, by2) - jnp.maximum(ay1, by1)
  return product(jnp.maximum(width, 0), jnp.maximum(height, 0))


def iou(
  a: Float[Array, '*#n 4'], b: Float[Array, '*#n 4']
) -> Float32[Array, '*n']:
  """Intersection over union, the union at least `LEAST_AREA`."""
  shared, union = _shared_and_union(a, b)
  return shared / union


def covered(
  a: Float[Array, '*#n 4'], b: Float[Array, '*#n 4']
) -> Float32[Array, '*n']:
  """Share of a that b covers: intersection over the area of a."""
  return intersection(a, b) / jnp.maximum(area(a), LEAST_AREA)


def giou(
  a: Float[Array, '*#n 4'], b: Float[Array, '*#n 4']
) -> Float32[Array, '*n']:
  """Generalised overlap: iou - (hull - union) / hull, from -1 to 1.

  The hull is the least box around both. Union and hull are at least
  `LEAST_AREA`.

  Source: Rezatofighi et al. 2019, arXiv 1902.09630, section 3.
  """
  shared, union = _shared_and_union(a, b)
  ax1, ay1, ax2, ay2 = _sides(a)
  bx1, by1, bx2, by2 = _sides(b)
  width = jnp.maximum(ax2, bx2) - jnp.minimum(ax1, bx1)
  height = jnp.maximum(ay2, by2) - jnp.minimum(ay1, by1)
  hull = product(jnp.maximum(width, 0), jnp.maximum(height, 0))
  hull = jnp.maximum(hull, LEAST_AREA)
  return shared / union - (hull - union) / hull


def encode(
  boxes: Float[Array, '*#n 4'],
  targets: Float[Array, '*#n 4'],
  stds: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
) -> Float32[Array, '*n 4']:
  """Deltas that move boxes to targets.

  ((centre of the target - centre) / side, log(side of the target / side)) /
  stds, in the order x, y, width, height. A side of 0 gives infinities or
  NaN: mask such rows before they enter a sum.

  Args:
    boxes: Boxes that are moved: anchors or RoIs.
    targets: Where to.
    stds: Scale of each delta.
  """
  x, y, w, h = _centre_and_size(boxes)
  tx, ty, tw, th = _centre_and_size(targets)
  deltas = [(tx - x) / w, (ty - y) / h, jnp.log(tw / w), jnp.log(th / h)]
  return jnp.stack([d / s for d, s in zip(deltas, stds, strict=True)], axis=-1)


def decode(
  boxes: Float[Array, '*#n 4'],
  deltas: Float[Array, '*#n 4'],
  stds: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
  size: Shaped[Array | np.ndarray, '*_s 2'] | None = None,
) -> Float32[Array, '*n 4']:
  """Boxes moved by deltas: the inverse of `encode`.

  Logarithms of sides are held within `LARGEST_LOG_RATIO`, and have no gradient
  beyond. Deltas of several classes broadcast: `decode(boxes[:, None], deltas)`
  of deltas [n, k, 4] is [n, k, 4].

  Args:
    boxes: Boxes that are moved: anchors or RoIs.
    deltas: Deltas, multiples of the stds.
    stds: Scale of each delta.
    size: Height and width of the image to which results are clipped, see
      `clip`; None: they are not.
  """
  x, y, w, h = _centre_and_size(boxes)
  dx, dy, dw, dh = (d * s for d, s in zip(_sides(deltas), stds, strict=True))
  dw, dh = (
    jnp.clip(d, -LARGEST_LOG_RATIO, LARGEST_LOG_RATIO) for d in (dw, dh)
  )
  x, y = x + w * dx, y + h * dy
  w, h = w * jnp.exp(dw) / 2, h * jnp.exp(dh) / 2
  moved = jnp.stack([x - w, y - h, x + w, y + h], axis=-1)
  return moved if size is None else clip(moved, size)


def _sides(boxes):
  """The four numbers of boxes, each [*n]."""
  boxes = boxes.astype(jnp.float32)
  return tuple(boxes[..., i] for i in range(4))


def _centre_and_size(boxes):
  x1, y1, x2, y2 = _sides(boxes)
  return (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1


def _shared_and_union(a, b):
  shared = intersection(a, b)
  return shared, jnp.maximum(area(a) + area(b) - shared, LEAST_AREA)
