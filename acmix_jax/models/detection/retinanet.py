"""RetinaNet.

Source: Lin et al., "Focal Loss for Dense Object Detection"; values, targets and
tests are those of mmdetection 2.28.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int

from acmix_jax.models.detection import dense, detector, losses
from acmix_jax.nn.heads import fpn, retina
from acmix_jax.ops import anchors as anchor_ops
from acmix_jax.ops import boxes as box_ops
from acmix_jax.ops import matching


class RetinaNet(detector.Detector, kw_only=True):
  """Classes and boxes of dense anchors; variables 'backbone', 'neck', 'head'.

  The pyramid begins with the backbone's second stage and goes on for two more
  levels.

  Attributes:
    head_depth: Convolutions of the head before its outputs.
    pre_nms: Pairs of an anchor and a class that a level gives at most. (Until
      version 2.13, mmdetection chose as many anchors by their best class.)
  """

  head_depth: int = 4
  pre_nms: int = 1000

  def setup(self):
    self._check_counts('pre_nms')
    self.neck = fpn.FPN(self.neck_features, 'conv', **self.dtypes)
    self.head = retina.RetinaHead(
      self.num_classes,
      anchor_ops.RETINANET.per_cell,
      self.neck_features,
      self.head_depth,
      **self.dtypes,
    )

  def __call__(
    self,
    images: detector.Images,
    sizes: detector.Sizes | None = None,
    *,
    train: bool = False,
  ) -> detector.Detections:
    """Detects objects.

    Args:
      images: Normalised images, 0 beyond their sizes.
      sizes: Valid height and width of each; None: the whole canvas.
      train: Whether the backbone runs as in training.
    """
    sizes = detector.sizes_of(images, sizes)
    outputs = self.networks(images, train=train)
    giving = outputs.by_level(self._giving(outputs, sizes))
    levels = [
      self._candidates(*level, sizes)
      for level in zip(
        outputs.boxes, outputs.logits, outputs.deltas, giving, strict=True
      )
    ]
    boxes, scores, labels = (
      jnp.concatenate(x, axis=1) for x in zip(*levels, strict=True)
    )
    return detector.without_duplicates(
      boxes,
      scores,
      labels,
      score_threshold=self.score_threshold,
      nms_threshold=self.nms_threshold,
      most=self.max_detections,
    )

  def networks(
    self, images: detector.Images, *, train: bool = False
  ) -> dense.Outputs:
    """All that has parameters, once: what the model costs.

    Args:
      images: Normalised images.
      train: Whether the backbone runs as in training.
    """
    stages = self.features(images, train=train)
    _, *maps = stages.values()
    maps = self.neck(maps)
    _, *strides = self.backbone.strides.values()
    strides = (*strides, 2 * strides[-1], 4 * strides[-1])
    logits, deltas = self.head(maps)
    return dense.Outputs(
      logits,
      deltas,
      anchor_ops.RETINANET._replace(strides=strides),
      [x.shape[1:3] for x in maps],
    )

  def losses(
    self,
    images: detector.Images,
    sizes: detector.Sizes,
    truth: detector.GroundTruth,
    *,
    train: bool = True,
  ) -> dict[str, Float32[Array, ' levels']]:
    """The losses of each level; `losses.total` is minimised.

    Args:
      images: Normalised images, 0 beyond their sizes.
      sizes: Valid height and width of each.
      truth: Objects.
      train: Whether the backbone runs as in training.

    Returns:
      'loss_cls', the focal loss, and 'loss_bbox', the absolute errors of the
      deltas. Both are divided by the positive anchors of a group, at least one
      an image.
    """
    sizes = detector.sizes_of(images, sizes)
    outputs = self.networks(images, train=train)
    targets = _targets(
      jnp.concatenate(outputs.boxes),
      self._own(outputs, sizes),
      jax.tree.map(jnp.asarray, truth),
      self.num_classes,
    )
    logits = jnp.concatenate(outputs.logits, axis=1)
    class_losses = losses.focal(logits, targets.labels)
    deltas = jnp.concatenate(outputs.deltas, axis=1).astype(jnp.float32)
    errors = deltas - targets.deltas
    box_losses = losses.smooth_l1(errors, beta=0.0)
    count = jnp.maximum(targets.positive.sum(axis=1), 1)
    sums = {
      'loss_cls': jnp.where(targets.used, class_losses, 0),
      'loss_bbox': jnp.where(targets.positive, box_losses, 0),
    }
    return {
      name: losses.group_mean(
        jnp.stack([x.sum(axis=1) for x in outputs.by_level(sums)], axis=1),
        count,
        self.images_per_group,
      )
      for name, sums in sums.items()
    }

  def _candidates(self, anchors, logits, deltas, giving, sizes):
    """The best pairs of an anchor and a class of a level.

    The best pairs are among the anchors with the best classes: fewer numbers
    are sorted than by sorting all pairs.
    """
    scores = jax.nn.sigmoid(logits.astype(jnp.float32))
    scores = jnp.where(giving[..., None], scores, 0)
    most = min(self.pre_nms, scores.shape[1])
    _, index = jax.lax.top_k(scores.max(axis=-1), most)
    # In their own order again, in which the first of equal pairs is taken.
    index = jnp.sort(index, axis=1)
    pairs = dense.take(scores, index).reshape(len(scores), -1)
    most = min(self.pre_nms, pairs.shape[1])
    scores, pair = jax.lax.top_k(pairs, most)
    index = dense.take(index, pair // self.num_classes)
    boxes = dense.decoded(anchors, deltas, index, sizes)
    return boxes, scores, pair % self.num_classes


class _Targets(NamedTuple):
  """What the head should say about each anchor.

  Attributes:
    labels: Class; num_classes: none.
    deltas: Deltas of the box; 0 where there is none.
    used: Anchors that the classes learn from.
    positive: Anchors that the boxes learn from.
  """

  labels: Int[Array, 'b n']
  deltas: Float32[Array, 'b n 4']
  used: Bool[Array, 'b n']
  positive: Bool[Array, 'b n']


def _targets(
  anchors: Float[Array, 'n 4'],
  own: Bool[Array, 'b n'],
  truth: detector.GroundTruth,
  num_classes: int,
) -> _Targets:
  """Targets of images whose own anchors take part."""
  anchors = anchors[None]
  matches = matching.match(
    anchors, truth.boxes, truth.valid, matching.RETINANET, own
  )
  positive = matches.number > matching.BACKGROUND
  boxes, labels = (
    dense.take(x, matches.index) for x in (truth.boxes, truth.labels)
  )
  boxes = jnp.where(positive[..., None], boxes, anchors)
  return _Targets(
    jnp.where(positive, labels, num_classes),
    box_ops.encode(anchors, boxes),
    matches.number > matching.IGNORED,
    positive,
  )
