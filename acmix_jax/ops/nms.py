"""Non-maximum suppression: the greedy choice, a tile of boxes at a time.

Source: mmdetection 2.28 and mmcv 1.7, nms and batched_nms.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Int32

from acmix_jax.ops import boxes as box_ops
from acmix_jax.ops import sharding

# Boxes that are compared at once with as many.
_TILE = 256


class Kept(NamedTuple):
  """Boxes that are kept, by descending score.

  Attributes:
    index: Index of each box; 0 where there is none, safe to gather by.
    valid: Which are boxes at all.
  """

  index: Int32[Array, 'b k']
  valid: Bool[Array, 'b k']


def nms(
  boxes: Float[Array, 'b n 4'],
  scores: Float[Array, 'b n'],
  valid: Bool[Array, 'b n'],
  threshold: float,
  most: int,
) -> Kept:
  """Keeps boxes by descending score that overlap no kept one too much.

  A box falls if its overlap with a kept box of higher score is greater than
  the threshold; equal is kept. Unions have no least area: two boxes of area 0
  do not overlap. Of equal scores the first box comes first, as in torchvision;
  mmcv's kernel leaves that open.

  Boxes are taken in tiles. Those of a tile that no box kept earlier suppresses
  then suppress each other until nothing changes: that is the greedy choice,
  since the first i boxes are settled after i rounds, and all after a few. The
  work ends with the last box asked for, and memory grows as n. Images are split
  over the devices of the mesh in context, see `sharding.split_images`.

  Args:
    boxes: Boxes.
    scores: Scores; NaN is not allowed.
    valid: Boxes that take part.
    threshold: Largest overlap of two kept boxes.
    most: Boxes to keep, at most; fewer are kept if fewer are left.

  Returns:
    min(most, n) places.
  """
  most = min(most, boxes.shape[1])
  run = functools.partial(_greedy, threshold=threshold, most=most)
  boxes, scores = lax.stop_gradient((boxes, scores))
  return sharding.split_images(run, boxes, scores, valid)


def batched_nms(
  boxes: Float[Array, 'b n 4'],
  scores: Float[Array, 'b n'],
  groups: Int[Array, 'b n'],
  valid: Bool[Array, 'b n'],
  threshold: float,
  most: int,
) -> Kept:
  """`nms` in which boxes of different groups do not meet.

  The boxes of a group (a class, a level) are moved by its number times (the
  largest coordinate of the image's valid boxes + 1), in float32 as in the
  sources: of 80 classes the last ones lie on a grid of 1/128 pixel, and
  overlaps near the threshold are those of the rounded boxes.

  Differs: from 10,000 boxes on mmcv suppresses group by group. It does so on
  the same moved boxes, so that it keeps the same ones.

  Args:
    boxes: Boxes.
    scores: Scores; NaN is not allowed.
    groups: Group of each box, from 0 up.
    valid: Boxes that take part.
    threshold: Largest overlap of two kept boxes of a group.
    most: Boxes of all groups to keep, at most.
  """
  largest = jnp.where(valid[..., None], boxes, -jnp.inf).max((1, 2))
  # Without boxes, any number will do.
  step = jnp.where(jnp.any(valid, axis=1), largest + 1, 0).astype(jnp.float32)
  offsets = box_ops.product(groups.astype(jnp.float32), step[:, None])
  return nms(boxes + offsets[..., None], scores, valid, threshold, most)


@jax.named_scope('nms')
def _greedy(boxes, scores, valid, threshold, most):
  """`nms` of the images of one device."""
  b, n, _ = boxes.shape
  order = jnp.argsort(jnp.where(valid, -scores, jnp.inf), axis=1, stable=True)
  order = jnp.pad(order, ((0, 0), (0, -n % _TILE)))
  counts = jnp.sum(valid, axis=1)
  alive = jnp.arange(order.shape[1])[None] < counts[:, None]
  boxes = _take(boxes.astype(jnp.float32), order)

  def unfinished(state):
    tile, number, _, _ = state
    return jnp.any((tile * _TILE < counts) & (number < most))

  def take_tile(state):
    tile, number, kept, index = state
    candidates, survives, places = (
      lax.dynamic_slice_in_dim(x, tile * _TILE, _TILE, axis=1)
      for x in (boxes, alive, order)
    )

    def compare(i, survives):
      earlier = lax.dynamic_slice_in_dim(kept, i * _TILE, _TILE, axis=1)
      there = i * _TILE + jnp.arange(_TILE)[None] < number[:, None]
      near = _too_near(earlier, candidates, threshold)
      return survives & ~_any_suppresses(near, there)

    full = (jnp.max(jnp.minimum(number, most)) + _TILE - 1) // _TILE
    survives = lax.fori_loop(0, full, compare, survives)
    survives = _settle(candidates, survives, threshold)
    # The survivors come first. What follows them is overwritten by the next
    # tile, or lies behind the last place that is asked for.
    first = jnp.argsort(~survives, axis=1, stable=True)
    start = jnp.minimum(number, most)
    kept = _write(kept, _take(candidates, first), start)
    index = _write(index, _take(places, first), start)
    return tile + 1, number + jnp.sum(survives, axis=1), kept, index

  # Whole tiles, and one more that may begin at the last place.
  places = most + -most % _TILE + _TILE
  state = (
    jnp.zeros((), jnp.int32),
    jnp.zeros(b, counts.dtype),
    jnp.zeros((b, places, 4), boxes.dtype),
    jnp.zeros((b, places), order.dtype),
  )
  state = sharding.vary_alike(state, boxes, scores, valid)[0]
  _, number, _, index = lax.while_loop(unfinished, take_tile, state)
  there = jnp.arange(most)[None] < number[:, None]
  return Kept(jnp.where(there, index[:, :most], 0).astype(jnp.int32), there)


def _too_near(a, b, threshold):
  """Whether overlaps of boxes are greater: [images, a, b]."""
  a, b = a[:, :, None], b[:, None]
  shared = box_ops.intersection(a, b)
  # Of two boxes of area 0 this is NaN, which is not greater.
  return shared / (box_ops.area(a) + box_ops.area(b) - shared) > threshold


def _any_suppresses(near, kept):
  return jnp.any(near & kept[..., None], axis=1)


def _settle(boxes, alive, threshold):
  """Those of a tile, by descending score, that are kept among themselves."""
  later = jnp.arange(_TILE)[:, None] < jnp.arange(_TILE)[None]
  near = _too_near(boxes, boxes, threshold) & later[None]

  def changes(state):
    previous, kept = state
    return jnp.any(previous != kept)

  def again(state):
    _, kept = state
    return kept, alive & ~_any_suppresses(near, kept)

  return lax.while_loop(changes, again, again((alive, alive)))[1]


def _take(x, index):
  index = index.reshape(index.shape + (1,) * (x.ndim - 2))
  return jnp.take_along_axis(x, index, axis=1)


def _write(x, tile, start):
  """Writes a tile of each image from its own place on."""
  write = functools.partial(lax.dynamic_update_slice_in_dim, axis=0)
  return jax.vmap(write)(x, tile, start)
