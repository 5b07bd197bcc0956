"""The region proposal network: what it learns and what it proposes.

Source: Ren et al., "Faster R-CNN", section 3.1; values, targets and losses are
those of mmdetection 2.28.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Float32, Int

from acmix_jax.models.detection import dense, detector, losses
from acmix_jax.ops import boxes as box_ops
from acmix_jax.ops import matching, nms, sampling


class Proposals(NamedTuple):
  """A fixed number p of regions of each image, best first.

  Attributes:
    boxes: Boxes in pixels of the input.
    valid: Which rows are proposals; the others are padding.
  """

  boxes: Float32[Array, 'b p 4']
  valid: Bool[Array, 'b p']


class Targets(NamedTuple):
  """What the head should say about s sampled anchors of each image.

  Attributes:
    samples: The anchors.
    deltas: Deltas of the positives' boxes; 0 of the others.
  """

  samples: sampling.Samples
  deltas: Float32[Array, 'b s 4']


def targets(
  anchors: Float[Array, 'n 4'],
  usable: Bool[Array, 'b n'],
  truth: detector.GroundTruth,
  priorities: Float[Array, 'b n'],
  number: int,
) -> Targets:
  """Samples anchors, and says what they should be.

  Args:
    anchors: Anchors of all levels.
    usable: Those that take part.
    truth: Objects.
    priorities: See `sampling.sample`.
    number: Anchors of an image to sample; half of them positives at most.
  """
  matches = matching.match(
    anchors[None], truth.boxes, truth.valid, matching.RPN, usable
  )
  samples = sampling.sample(matches.number, priorities, number, 0.5)
  boxes = anchors[samples.index]
  goals = dense.take(truth.boxes, dense.take(matches.index, samples.index))
  goals = jnp.where(samples.positive[..., None], goals, boxes)
  return Targets(samples, box_ops.encode(boxes, goals))


def head_losses(
  outputs: dense.Outputs,
  goals: Targets,
  beta: float,
  images_per_group: int,
) -> dict[str, Float32[Array, ' levels']]:
  """Losses of each level.

  Both are divided by the sampled positives, at least one an image, and the
  sampled negatives, likewise.

  Args:
    outputs: Outputs of the head.
    goals: Targets of each image.
    beta: Where the square of the smooth L1 loss ends; 0: L1.
    images_per_group: See `losses.group_mean`.

  Returns:
    'loss_rpn_cls', binary cross entropy, and 'loss_rpn_bbox'.
  """
  samples = goals.samples
  logits, deltas = (
    dense.take(jnp.concatenate(x, axis=1), samples.index)
    for x in (outputs.logits, outputs.deltas)
  )
  class_losses = optax.sigmoid_binary_cross_entropy(
    logits[..., 0].astype(jnp.float32), samples.positive.astype(jnp.float32)
  )
  deltas = deltas.astype(jnp.float32)
  box_losses = losses.smooth_l1(deltas - goals.deltas, beta)
  positives = samples.positive.sum(axis=1)
  negatives = samples.valid.sum(axis=1) - positives
  count = jnp.maximum(positives, 1) + jnp.maximum(negatives, 1)
  in_level = _levels_of(outputs, samples.index)
  return {
    name: losses.group_mean(
      (jnp.where(rows, x, 0)[..., None] * in_level).sum(axis=1),
      count,
      images_per_group,
    )
    for name, x, rows in (
      ('loss_rpn_cls', class_losses, samples.valid),
      ('loss_rpn_bbox', box_losses, samples.positive),
    )
  }


def _levels_of(outputs, index) -> Float[Array, 'b s levels']:
  """1 at the level of each anchor, 0 elsewhere."""
  counts = jnp.array([deltas.shape[1] for deltas in outputs.deltas])
  ends = jnp.cumsum(counts)
  levels = jnp.searchsorted(ends, index, side='right')
  return jax.nn.one_hot(levels, len(outputs.deltas))


def propose(
  outputs: dense.Outputs,
  giving: Bool[Array, 'b n'],
  sizes: Int[Array, 'b 2'],
  *,
  pre_nms: int,
  most: int,
  threshold: float = 0.7,
) -> Proposals:
  """The anchors that look most like objects, without duplicates.

  Args:
    outputs: Outputs of the head.
    giving: Anchors that give proposals.
    sizes: Valid height and width of each image, to which boxes are clipped.
    pre_nms: Anchors of a level that take part, at most.
    most: Proposals to keep, and to pad to.
    threshold: Largest overlap of two proposals of a level.
  """
  boxes, scores, levels, valid = [], [], [], []
  for level, (anchors, logits, deltas, gives) in enumerate(
    zip(
      outputs.boxes,
      outputs.logits,
      outputs.deltas,
      outputs.by_level(giving),
      strict=True,
    )
  ):
    score = jax.nn.sigmoid(logits[..., 0].astype(jnp.float32))
    score = jnp.where(gives, score, -1)
    score, index = jax.lax.top_k(score, min(pre_nms, score.shape[1]))
    box = dense.decoded(anchors, deltas, index, sizes)
    boxes.append(box)
    scores.append(score)
    levels.append(jnp.full(index.shape, level))
    # Beyond the image, boxes collapse at its border.
    valid.append((score >= 0) & (box[..., 2:] > box[..., :2]).all(axis=-1))
  boxes, scores, levels, valid = (
    jnp.concatenate(x, axis=1) for x in (boxes, scores, levels, valid)
  )
  kept = nms.batched_nms(boxes, scores, levels, valid, threshold, most)
  return Proposals(dense.take(boxes, kept.index), kept.valid)
