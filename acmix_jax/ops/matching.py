"""Matching of candidate boxes with ground truths by their overlaps.

Source: mmdetection 2.28 MaxIoUAssigner.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Float32, Int32

from acmix_jax.ops import boxes as box_ops
from acmix_jax.ops import sharding

# What a candidate is matched with; from 1 on, ground truth number - 1.
IGNORED = -1
BACKGROUND = 0


class Thresholds(NamedTuple):
  """Overlaps that decide.

  Attributes:
    positive: From here on a candidate belongs to its best ground truth.
    negative: Below, it is background; between the two it is ignored.
    least: A ground truth whose best overlap is at least this takes the
      candidates that have it, whatever they overlap better; None: none does.
  """

  positive: float
  negative: float
  least: float | None = None


RETINANET = Thresholds(0.5, 0.4, 0.0)
RPN = Thresholds(0.7, 0.3, 0.3)
MASK_RCNN = Thresholds(0.5, 0.5, 0.5)
CASCADE = (Thresholds(0.5, 0.5), Thresholds(0.6, 0.6), Thresholds(0.7, 0.7))


class Matches(NamedTuple):
  """What candidates are matched with.

  Attributes:
    number: `IGNORED`, `BACKGROUND`, or the index of a ground truth plus 1.
    overlap: Largest overlap with any ground truth: 0 without ground truths,
      -1 for a candidate that is not valid.
  """

  number: Int32[Array, 'b n']
  overlap: Float32[Array, 'b n']

  @property
  def index(self) -> Int32[Array, 'b n']:
    """Index of the ground truth; 0 where there is none, safe to gather by."""
    return jnp.maximum(self.number - 1, 0)


def match(
  candidates: Float[Array, '#b n 4'],
  truths: Float[Array, 'b g 4'],
  truths_valid: Bool[Array, 'b g'],
  thresholds: Thresholds,
  valid: Bool[Array, '#b n'] | None = None,
) -> Matches:
  """Matches candidates with the ground truths of their image.

  1. A candidate is background where its best overlap is below `negative`,
     belongs to its best ground truth, the first of equals, where that is at
     least `positive`, and is ignored between the two.
  2. With `least`, each ground truth in turn whose best overlap reaches it
     takes every candidate with exactly that overlap, also from others: the
     last ground truth wins.

  Rows of padding among the ground truths never match; where all are padding,
  every valid candidate is background. Ground truths are taken one by one up to
  the last of any image: padding behind it costs nothing, and memory grows as n.
  Images are split over the devices of the mesh in context, see
  `sharding.split_images`.

  Args:
    candidates: Anchors or proposals.
    truths: Ground truths, padded to a fixed number.
    truths_valid: Which rows are no padding.
    thresholds: Overlaps that decide.
    valid: Candidates that take part; the others are ignored, and are nobody's
      best. None: all.
  """
  shape = len(truths), candidates.shape[1]
  candidates = jnp.broadcast_to(candidates, (*shape, 4))
  valid = jnp.broadcast_to(True if valid is None else valid, shape)
  run = functools.partial(_match, thresholds)
  arrays = lax.stop_gradient((candidates, truths))
  return sharding.split_images(run, *arrays, truths_valid, valid)


@jax.named_scope('matching')
def _match(thresholds, candidates, truths, truths_valid, valid):
  """`match` of the images of one device."""

  def compare(index, state):
    best, number, taken = state
    truth, there = truths[:, index, None], truths_valid[:, index, None]
    overlap = box_ops.iou(candidates, truth)
    # Computed once: what equals the largest must be what was the largest.
    overlap = lax.optimization_barrier(jnp.where(valid & there, overlap, -1))
    number = jnp.where(overlap > best, index + 1, number)
    if thresholds.least is not None:
      highest = jnp.max(overlap, axis=1, keepdims=True)
      takes = there & (highest >= thresholds.least)
      taken = jnp.where(takes & (overlap == highest), index + 1, taken)
    return jnp.maximum(overlap, best), number, taken

  best, none = jnp.zeros(valid.shape), jnp.zeros(valid.shape, jnp.int32)
  state = sharding.vary_alike((best, none, none), candidates, truths)[0]
  places = jnp.arange(1, truths.shape[1] + 1)[None]
  last = jnp.max(jnp.where(truths_valid, places, 0), initial=0)
  best, number, taken = lax.fori_loop(0, last, compare, state)
  low = jnp.where(best < thresholds.negative, BACKGROUND, IGNORED)
  number = jnp.where(best >= thresholds.positive, number, low)
  number = jnp.where(taken > 0, taken, number)
  return Matches(
    jnp.where(valid, number, IGNORED).astype(jnp.int32),
    jnp.where(valid, best, -1),
  )


def mostly_within(
  candidates: Float[Array, '#b n 4'],
  regions: Float[Array, 'b r 4'],
  regions_valid: Bool[Array, 'b r'],
  threshold: float,
) -> Bool[Array, 'b n']:
  """Candidates of which a region covers more than a share of the area.

  For `match(..., valid=~mostly_within(...))`: regions to ignore. No recipe here
  has any; crowds play no part in their training.

  Args:
    candidates: Boxes.
    regions: Regions, padded to a fixed number.
    regions_valid: Which rows are no padding.
    threshold: Share of the area of a candidate.
  """
  share = box_ops.covered(candidates[:, :, None], regions[:, None])
  return jnp.any((share > threshold) & regions_valid[:, None], axis=2)
