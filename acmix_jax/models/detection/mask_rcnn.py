"""Mask R-CNN and Cascade Mask R-CNN.

Source: He et al., "Mask R-CNN"; Cai and Vasconcelos, "Cascade R-CNN"; values,
targets and tests are those of mmdetection 2.28, and of the cascade those of
Swin's detection code.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from acmix_jax.models.detection import (
  dense,
  detector,
  proposals,
  regions,
)
from acmix_jax.nn import checks
from acmix_jax.nn.heads import fpn, roi, rpn
from acmix_jax.ops import anchors as anchor_ops
from acmix_jax.ops import boxes as box_ops
from acmix_jax.ops import masks as mask_ops
from acmix_jax.ops import matching, roi_align, sampling

# Features of a region: of its box, and of its mask before upsampling.
_BOX_SIDE, _MASK_SIDE = 7, 14


class MaskRCNN(detector.Detector, kw_only=True):
  """Regions that may be objects, then their classes, boxes and masks.

  The variables are 'backbone', 'neck', 'rpn', 'box_heads_0', 'mask_heads_0'; of
  several stages there are 'box_heads_1' and so on. The pyramid has one level
  more than the backbone, which the region proposal network alone sees.

  Attributes:
    stages: What each stage learns.
    box_convs: Convolutions of a box head, with norms.
    box_dense: Fully connected layers of a box head after these.
    box_hidden: Their features.
    box_loss: Loss of the boxes, 'l1' or 'giou'; see `regions.box_losses`.
    box_norm: What the norms of the box heads train, one of
      `layers.BATCH_NORM_MODES`.
    mask_depth: Convolutions of a mask head before its upsampling.
    rpn_beta: Where the square of the proposals' smooth L1 loss ends; 0: L1.
    rpn_border: Pixels by which anchors that the proposals learn from may stand
      out of the image; None: any.
    rpn_samples: Anchors of an image that the proposals learn from.
    region_samples: Regions of an image that each stage learns from.
    train_pre_nms: Anchors of a level that may become proposals in training.
    train_proposals: Proposals of an image in training.
    pre_nms: Anchors of a level that may become proposals.
    num_proposals: Proposals of an image.
    finest_side: Pixels up to twice of which regions are taken from the finest
      level, see `roi_align.levels_of`.
  """

  stages: tuple[regions.Stage, ...] = (
    regions.Stage(matching.MASK_RCNN, (0.1, 0.1, 0.2, 0.2)),
  )
  box_convs: int = 0
  box_dense: int = 2
  box_hidden: int = 1024
  box_loss: str = 'l1'
  box_norm: str = 'batch'
  mask_depth: int = 4
  rpn_beta: float = 0.0
  rpn_border: float | None = None
  rpn_samples: int = 256
  region_samples: int = 512
  train_pre_nms: int = 2000
  train_proposals: int = 1000
  pre_nms: int = 1000
  num_proposals: int = 1000
  finest_side: float = 56.0

  def setup(self):
    self._check_counts(
      *('box_dense', 'box_hidden', 'rpn_samples', 'region_samples'),
      *('train_pre_nms', 'train_proposals', 'pre_nms', 'num_proposals'),
    )
    checks.check_choice(
      'MaskRCNN', 'box_loss', self.box_loss, regions.BOX_LOSSES
    )
    features = self.neck_features
    self.neck = fpn.FPN(features, 'pool', **self.dtypes)
    self.rpn = rpn.RPNHead(anchor_ops.RPN.per_cell, features, **self.dtypes)
    self.box_heads = [
      roi.BoxHead(
        self.num_classes,
        self.box_convs,
        self.box_dense,
        features,
        self.box_hidden,
        self.box_norm,
        **self.dtypes,
      )
      for _ in self.stages
    ]
    self.mask_heads = [
      roi.MaskHead(self.num_classes, self.mask_depth, features, **self.dtypes)
      for _ in self.stages
    ]

  def __call__(
    self,
    images: detector.Images,
    sizes: detector.Sizes | None = None,
    *,
    train: bool = False,
  ) -> detector.Detections:
    """Detects objects.

    Scores are the softmax of the mean of the stages' logits, boxes those of the
    last stage, masks the mean of the stages'.

    Args:
      images: Normalised images, 0 beyond their sizes.
      sizes: Valid height and width of each; None: the whole canvas.
      train: Whether backbone and heads run as in training.
    """
    sizes = detector.sizes_of(images, sizes)
    maps = self._pyramid(images, train)
    outputs = self._propose(maps)
    proposed = proposals.propose(
      outputs,
      self._giving(outputs, sizes),
      sizes,
      pre_nms=self.pre_nms,
      most=self.num_proposals,
    )
    self.sow('intermediates', 'proposals', proposed)
    boxes, scores = self._classify(maps, proposed, sizes, train)
    b, n, k = scores.shape
    found = detector.without_duplicates(
      boxes.reshape(b, n * k, 4),
      scores.reshape(b, n * k),
      jnp.tile(jnp.arange(k), (b, n)),
      score_threshold=self.score_threshold,
      nms_threshold=self.nms_threshold,
      most=self.max_detections,
    )
    return found._replace(masks=self._masks(maps, found))

  def networks(
    self,
    images: detector.Images,
    *,
    num_regions: int = 1000,
    num_masks: int = 100,
    train: bool = False,
  ) -> dense.Outputs:
    """All that has parameters, once: what the model costs.

    Args:
      images: Normalised images.
      num_regions: Regions in each box head.
      num_masks: Regions in each mask head.
      train: Whether backbone and heads run as in training.
    """
    maps = self._pyramid(images, train)
    features = maps[0].shape[-1]
    x = jnp.zeros((num_regions, _BOX_SIDE, _BOX_SIDE, features), maps[0].dtype)
    for head in self.box_heads:
      head(x, train=train)
    x = jnp.zeros((num_masks, _MASK_SIDE, _MASK_SIDE, features), maps[0].dtype)
    for head in self.mask_heads:
      head(x)
    return self._propose(maps)

  def losses(
    self,
    images: detector.Images,
    sizes: detector.Sizes,
    truth: detector.GroundTruth,
    *,
    train: bool = True,
    priorities: Mapping[str, Float[Array, 'b _n']] | None = None,
  ) -> dict[str, Float32[Array, '*levels']]:
    """The losses; `losses.total` is minimised.

    Proposals and refined boxes pass no gradient on.

    Args:
      images: Normalised images, 0 beyond their sizes.
      sizes: Valid height and width of each.
      truth: Objects, with masks.
      train: Whether backbone and heads run as in training.
      priorities: By which anchors ('rpn': [b, anchors]) and regions ('stage0',
        ...: [b, objects + boxes]) are sampled, see `sampling.sample`; None:
        drawn with the key 'sampling'.

    Returns:
      'loss_rpn_cls', 'loss_rpn_bbox' of each level; 'loss_cls', 'loss_bbox',
      'acc' of `regions.box_losses` and 'loss_mask', of several stages with the
      prefixes 's0.', 's1.', ...

    Raises:
      ValueError: The objects have no masks.
    """
    if truth.masks is None or truth.regions is None:
      raise ValueError(
        f'{type(self).__name__} learns masks: give masks and regions of the '
        'objects, or train a RetinaNet, which needs none.'
      )
    sizes = detector.sizes_of(images, sizes)
    maps = self._pyramid(images, train)
    outputs = self._propose(maps)
    truth = jax.tree.map(jnp.asarray, truth)
    goals = self._proposal_goals(outputs, sizes, truth, priorities)
    found = proposals.propose(
      dense.detached(outputs),
      self._giving(outputs, sizes),
      sizes,
      pre_nms=self.train_pre_nms,
      most=self.train_proposals,
    )
    self.sow('intermediates', 'proposals', found)
    losses = proposals.head_losses(
      outputs, goals, self.rpn_beta, self.images_per_group
    )
    return losses | self._region_losses(
      maps, found, sizes, truth, train, priorities
    )

  def _proposal_goals(self, outputs, sizes, truth, priorities):
    """What the anchors of an image's own cells, and no others, learn."""
    anchors = jnp.concatenate(outputs.boxes)
    usable = self._own(outputs, sizes)
    if self.rpn_border is not None:
      usable &= anchor_ops.within_image(anchors, sizes, self.rpn_border)
    return proposals.targets(
      anchors,
      usable,
      truth,
      self._priorities('rpn', usable.shape, priorities),
      self.rpn_samples,
    )

  def _region_losses(self, maps, found, sizes, truth, train, priorities):
    """The losses of the stages, from proposals on."""
    boxes, valid = found
    samples, by_stage = [], []
    for i, stage in enumerate(self.stages):
      shape = (len(boxes), truth.valid.shape[1] + boxes.shape[1])
      sampled = regions.sample(
        boxes,
        valid,
        truth,
        self._priorities(f'stage{i}', shape, priorities),
        thresholds=stage.thresholds,
        number=self.region_samples,
        num_classes=self.num_classes,
      )
      self.sow('intermediates', f'stage{i}', sampled)
      logits, deltas = self._box_head(
        i, maps, sampled.boxes, sampled.valid, train
      )
      losses = regions.box_losses(
        logits,
        deltas,
        sampled,
        truth,
        stage.stds,
        self.box_loss,
        self.images_per_group,
      )
      boxes = regions.refine(
        sampled.boxes, logits, deltas, sizes, stage.stds, sampled.labels
      )
      valid = sampled.valid & ~sampled.is_truth
      samples.append(sampled)
      by_stage.append(losses)
    mask_losses = self._mask_losses(maps, samples, sizes, truth)
    named = {}
    for i, stage in enumerate(self.stages):
      prefix = f's{i}.' if len(self.stages) > 1 else ''
      losses = by_stage[i] | {'loss_mask': mask_losses[i]}
      for name, loss in losses.items():
        weight = stage.weight if 'loss' in name else 1
        named[prefix + name] = weight * loss
    return named

  def _pyramid(self, images, train):
    return self.neck([*self.features(images, train=train).values()])

  def _propose(self, maps) -> dense.Outputs:
    strides = (*self.backbone.strides.values(),)
    logits, deltas = self.rpn(maps)
    return dense.Outputs(
      logits,
      deltas,
      anchor_ops.RPN._replace(strides=(*strides, 2 * strides[-1])),
      [x.shape[1:3] for x in maps],
    )

  def _align(self, maps, boxes, valid, side):
    """Features [b, r, side, side, c] of boxes [b, r, 4]; 0 of padding."""
    strides = (*self.backbone.strides.values(),)
    # Empty boxes cost nothing.
    boxes = jnp.where(valid[..., None], boxes, 0)
    return roi_align.roi_align(
      maps[: len(strides)], boxes, strides, side, self.finest_side
    )

  def _box_head(self, stage, maps, boxes, valid, train):
    """Logits [b, r, k + 1] and deltas [b, r, k, 4] of boxes [b, r, 4]."""
    x = self._align(maps, boxes, valid, _BOX_SIDE)
    x = x.reshape(-1, *x.shape[2:])
    outputs = self.box_heads[stage](x, valid.ravel(), train=train)
    return (y.reshape(*valid.shape, *y.shape[1:]) for y in outputs)

  def _classify(self, maps, found, sizes, train):
    """Boxes [b, r, k, 4] and scores [b, r, k] of r proposals; 0 of padding."""
    refined, valid = found
    total = 0
    for i, stage in enumerate(self.stages):
      boxes = refined
      logits, deltas = self._box_head(i, maps, boxes, valid, train)
      total += logits.astype(jnp.float32)
      refined = regions.refine(boxes, logits, deltas, sizes, stage.stds)
    scores = jax.nn.softmax(total / len(self.stages))[..., :-1]
    boxes = box_ops.decode(
      boxes[:, :, None], deltas, stage.stds, sizes[:, None, None]
    )
    return boxes, jnp.where(valid[..., None], scores, 0)

  def _masks(self, maps, found):
    """Probabilities [b, r, 28, 28] of detections, each of its label."""
    labels = found.labels
    x = self._align(maps, found.boxes, found.valid, _MASK_SIDE)
    masks = [
      jax.nn.sigmoid(_of_labels(head, x, labels)) for head in self.mask_heads
    ]
    return sum(masks) / len(masks)

  def _mask_losses(self, maps, samples, sizes, truth):
    """Loss of each mask head on the positives of its stage."""
    most = sampling.most_positives(
      self.region_samples, regions.POSITIVE_FRACTION
    )
    # Positives come first.
    samples = [jax.tree.map(lambda x: x[:, :most], x) for x in samples]
    # One call for all stages compiles in less time.
    every = jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), *samples)
    x = self._align(maps, every.boxes, every.positive, _MASK_SIDE)
    targets = mask_ops.mask_targets(
      truth.masks, truth.regions, every.boxes, every.index, self._padded(sizes)
    )
    ends = np.cumsum([x.valid.shape[1] for x in samples])[:-1]
    return [
      regions.mask_loss(
        _of_labels(head, own, sampled.labels),
        own_targets,
        sampled.positive,
        self.images_per_group,
      )
      for head, sampled, own, own_targets in zip(
        self.mask_heads,
        samples,
        jnp.split(x, ends, axis=1),
        jnp.split(targets, ends, axis=1),
        strict=True,
      )
    ]

  def _priorities(self, name, shape, given):
    if given is not None:
      return given[name]
    return jax.random.uniform(self.make_rng('sampling'), shape)


def _of_labels(head, x, labels):
  """Logits [b, r, 28, 28] of a mask head for features [b, r, 14, 14, c]."""
  # Of background, some class's, which nobody reads.
  labels = jnp.minimum(labels, head.num_classes - 1)
  logits = head(x.reshape(-1, *x.shape[2:]), labels.ravel())
  return logits.reshape(*labels.shape, *logits.shape[1:]).astype(jnp.float32)


class CascadeMaskRCNN(MaskRCNN, kw_only=True):
  """Three stages, each of which refines the boxes of the one before."""

  stages: tuple[regions.Stage, ...] = (
    regions.Stage(matching.CASCADE[0], (0.1, 0.1, 0.2, 0.2), 1.0),
    regions.Stage(matching.CASCADE[1], (0.05, 0.05, 0.1, 0.1), 0.5),
    regions.Stage(matching.CASCADE[2], (0.033, 0.033, 0.067, 0.067), 0.25),
  )
  box_convs: int = 4
  box_dense: int = 1
  box_loss: str = 'giou'
  rpn_beta: float = 1 / 9
  rpn_border: float | None = 0.0
  train_proposals: int = 2000
