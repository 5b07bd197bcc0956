"""What the heads of sampled regions learn, and how a cascade refines regions.

Source: He et al., "Mask R-CNN"; Cai and Vasconcelos, "Cascade R-CNN". Targets
and losses are those of mmdetection 2.28.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Float32, Int

from acmix_jax.models.detection import dense, detector, losses
from acmix_jax.ops import boxes as box_ops
from acmix_jax.ops import matching, sampling

# A quarter of the sampled regions are positives at most.
POSITIVE_FRACTION = 0.25
# Losses of the boxes, see `box_losses`.
BOX_LOSSES = ('l1', 'giou')


class Stage(NamedTuple):
  """What a stage of a cascade learns; Mask R-CNN has one.

  Attributes:
    thresholds: Overlaps that make a region positive or negative.
    stds: Scale of the deltas of its boxes.
    weight: Factor of its losses.
  """

  thresholds: matching.Thresholds
  stds: tuple[float, float, float, float]
  weight: float = 1.0


class Regions(NamedTuple):
  """A fixed number s of sampled regions: positives, negatives, padding.

  Attributes:
    boxes: Boxes in pixels of the input.
    valid: Which rows are no padding.
    positive: Which show an object.
    is_truth: Which are the box of an object itself.
    index: The object of each positive; 0 of the others.
    labels: Class of each positive; num_classes, background, of the others.
  """

  boxes: Float32[Array, 'b s 4']
  valid: Bool[Array, 'b s']
  positive: Bool[Array, 'b s']
  is_truth: Bool[Array, 'b s']
  index: Int[Array, 'b s']
  labels: Int[Array, 'b s']


def sample(
  boxes: Float[Array, 'b p 4'],
  valid: Bool[Array, 'b p'],
  truth: detector.GroundTruth,
  priorities: Float[Array, 'b n'],
  *,
  thresholds: matching.Thresholds,
  number: int,
  num_classes: int,
) -> Regions:
  """Samples regions among objects and proposals.

  Args:
    boxes: Proposals.
    valid: Which proposals are no padding.
    truth: The g objects of each image, which are candidates themselves.
    priorities: Of the objects, then of the proposals: n = g + p; see
      `sampling.sample`.
    thresholds: Overlaps that decide.
    number: Regions of an image to sample.
    num_classes: Classes without background.
  """
  matches = matching.match(boxes, truth.boxes, truth.valid, thresholds, valid)
  g = truth.valid.shape[1]
  own = jnp.arange(1, g + 1)[None]
  own = jnp.where(truth.valid, own, matching.IGNORED).astype(jnp.int32)
  matched = jnp.concatenate([own, matches.number], axis=1)
  samples = sampling.sample(matched, priorities, number, POSITIVE_FRACTION)
  positive = samples.positive
  index = dense.take(matched, samples.index) - 1
  index = jnp.where(positive, index, 0)
  candidates = jnp.concatenate([truth.boxes, boxes], axis=1)
  return Regions(
    dense.take(candidates, samples.index),
    samples.valid,
    positive,
    positive & (samples.index < g),
    index,
    jnp.where(positive, dense.take(truth.labels, index), num_classes),
  )


def box_losses(
  logits: Float[Array, 'b s _j'],
  deltas: Float[Array, 'b s k 4'],
  regions: Regions,
  truth: detector.GroundTruth,
  stds: tuple[float, float, float, float],
  kind: str,
  images_per_group: int,
) -> dict[str, Float32[Array, '']]:
  """Losses of a box head, divided by all sampled regions of a group.

  Args:
    logits: Logits of the classes, background last.
    deltas: Deltas of the box of each class.
    regions: The regions, which get no gradient.
    truth: Objects.
    stds: Scale of the deltas.
    kind: 'l1': absolute errors of the deltas. 'giou': 10 (1 - generalised
      overlap) of the boxes, which are not clipped.
    images_per_group: See `losses.group_mean`.

  Returns:
    'loss_cls', cross entropy; 'loss_bbox', of the positives' own class; 'acc',
    percentage of regions whose class is right.
  """
  logits = logits.astype(jnp.float32)
  cross_entropy = optax.softmax_cross_entropy_with_integer_labels(
    logits, regions.labels
  )
  positive = regions.positive[..., None]
  # What is no positive is moved nowhere, from a box that has sides.
  boxes = jnp.where(positive, regions.boxes, jnp.array([0.0, 0, 1, 1]))
  goals = dense.take(truth.boxes, regions.index)
  goals = jnp.where(positive, goals, boxes)
  deltas = of_class(deltas, regions.labels).astype(jnp.float32)
  if kind == 'l1':
    errors = losses.smooth_l1(deltas - box_ops.encode(boxes, goals, stds), 0.0)
  else:
    moved = box_ops.decode(boxes, deltas, stds)
    errors = 10 * (1 - box_ops.giou(moved, goals))
  hits = logits.argmax(axis=-1) == regions.labels
  count = regions.valid.sum(axis=1)
  return {
    name: losses.group_mean(
      jnp.where(rows, x, 0).sum(axis=1), count, images_per_group
    )
    for name, x, rows in (
      ('loss_cls', cross_entropy, regions.valid),
      ('loss_bbox', errors, regions.positive),
      ('acc', jnp.where(hits, 100.0, 0.0), regions.valid),
    )
  }


def of_class(
  deltas: Float[Array, '*b k 4'], labels: Int[Array, '*b']
) -> Float[Array, '*b 4']:
  """Deltas of one class of each region; of background, some class's."""
  labels = jnp.minimum(labels, deltas.shape[-2] - 1)[..., None, None]
  return jnp.take_along_axis(deltas, labels, axis=-2)[..., 0, :]


def refine(
  boxes: Float[Array, 'b s 4'],
  logits: Float[Array, 'b s _j'],
  deltas: Float[Array, 'b s k 4'],
  sizes: Int[Array, 'b 2'],
  stds: tuple[float, float, float, float],
  labels: Int[Array, 'b s'] | None = None,
) -> Float32[Array, 'b s 4']:
  """Boxes of the next stage, clipped to the images, without gradient.

  Args:
    boxes: Regions of this stage.
    logits: Logits of the classes, background last.
    deltas: Deltas of the box of each class.
    sizes: Valid height and width of each image.
    stds: Scale of the deltas.
    labels: Classes whose boxes are taken in training; of background, and
      without labels, the class of the largest logit but background's.
  """
  k = deltas.shape[2]
  best = logits[..., :k].argmax(axis=-1)
  labels = best if labels is None else jnp.where(labels < k, labels, best)
  moved = box_ops.decode(boxes, of_class(deltas, labels), stds, sizes[:, None])
  return jax.lax.stop_gradient(moved)


def mask_loss(
  logits: Float[Array, 'b s h w'],
  targets: Bool[Array, 'b s h w'],
  positive: Bool[Array, 'b s'],
  images_per_group: int,
) -> Float32[Array, '']:
  """Mean binary cross entropy of the pixels of the positives of a group.

  Args:
    logits: Logits of the class of each region.
    targets: Masks.
    positive: Which regions are positives.
    images_per_group: See `losses.group_mean`.
  """
  pixels = optax.sigmoid_binary_cross_entropy(
    logits.astype(jnp.float32), targets.astype(jnp.float32)
  ).mean(axis=(2, 3))
  sums = jnp.where(positive, pixels, 0).sum(axis=1)
  return losses.group_mean(sums, positive.sum(axis=1), images_per_group)
