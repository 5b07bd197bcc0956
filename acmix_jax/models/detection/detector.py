"""What detectors have in common: backbone, pyramid, anchors, and results."""

import dataclasses
import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Float32, Int, Shaped

from acmix_jax.models.backbones import backbone as backbone_lib
from acmix_jax.models.detection import dense
from acmix_jax.nn import checks
from acmix_jax.ops import anchors as anchor_ops
from acmix_jax.ops import nms

# What a detector is called with.
Images = Float[Array | np.ndarray, 'b h w 3']
Sizes = Int[Array | np.ndarray, 'b 2']


class Detections(NamedTuple):
  """A fixed number k of detections of each image, best first.

  Attributes:
    boxes: x1, y1, x2, y2 in pixels of the input.
    scores: Probabilities, in descending order.
    labels: Classes.
    valid: Which rows are detections; the others are padding.
    masks: Probabilities that the cells of a box, 28 x 28 of them, belong to the
      object; None: the model finds boxes alone.
  """

  boxes: Float32[Array, 'b k 4']
  scores: Float32[Array, 'b k']
  labels: Int[Array, 'b k']
  valid: Bool[Array, 'b k']
  masks: Float32[Array, 'b k 28 28'] | None = None


class GroundTruth(NamedTuple):
  """The objects of each image, padded to a fixed number g.

  Attributes:
    boxes: x1, y1, x2, y2 in pixels of the input.
    labels: Classes.
    valid: Which rows are objects; the others never matter.
    masks: Bitmaps of the objects; None: the model finds boxes alone.
    regions: The part of the image that each bitmap covers; see
      `ops.masks.mask_targets`.
  """

  boxes: Float[Array | np.ndarray, '*b g 4']
  labels: Int[Array | np.ndarray, '*b g']
  valid: Bool[Array | np.ndarray, '*b g']
  masks: Shaped[Array | np.ndarray, '*b g s t'] | None = None
  regions: Float[Array | np.ndarray, '*b g 4'] | None = None


class Detector(nn.Module):
  """Base of the detectors.

    detections = model.apply(variables, images, sizes)
    losses, state = model.apply(
      variables, images, sizes, truth, train=True, method='losses',
      mutable=['batch_stats'], rngs={'sampling': key1, 'dropout': key2},
    )

  Images are normalised and share a canvas; beyond its size, right and below, an
  image is 0. mmdetection pads each image to a multiple of `size_divisor`, and
  its anchors end there. So do they here, on a canvas of any size.

  Attributes:
    backbone: Backbone, whose dtypes the heads have, too.
    num_classes: Classes without background.
    neck_features: Channels of the pyramid and of the convolutions on it.
    images_per_group: Neighbours in a training batch whose losses are divided by
      one count, see `losses.group_mean`; 0: the whole batch.
    size_divisor: Pixels whose multiples the sides of a padded image are.
    padding_anchors: Whether anchors beyond an image's own padding give
      proposals and detections, too, as in mmdetection's batches of several
      images; alone, an image has none there. (Of an image on 3/4 of the canvas
      of its batch, 7 of 60 proposals came from there.)
    score_threshold: What the score of a detection exceeds.
    nms_threshold: Largest overlap of two detections of a class.
    max_detections: Detections k of an image.
  """

  backbone: backbone_lib.Backbone
  num_classes: int
  _: dataclasses.KW_ONLY
  neck_features: int = 256
  images_per_group: int = 2
  size_divisor: int = 32
  padding_anchors: bool = False
  score_threshold: float = 0.05
  nms_threshold: float = 0.5
  max_detections: int = 100

  def _check_counts(self, *counts: str):
    """Raises ValueError unless fields, and those of all, are counts."""
    counts = ('neck_features', 'size_divisor', 'max_detections', *counts)
    checks.check_counts(
      type(self).__name__, **{x: getattr(self, x) for x in counts}
    )

  @property
  def dtypes(self) -> dict[str, DTypeLike]:
    """Computation and parameter dtype of neck and heads."""
    return dict(
      dtype=self.backbone.dtype, param_dtype=self.backbone.param_dtype
    )

  def features(
    self, images: Images, *, train: bool = False
  ) -> backbone_lib.Stages:
    """Maps normalised images, padded if need be, to the backbone's stages."""
    checks.check_map(type(self).__name__, images)
    multiple = math.lcm(self.size_divisor, self.backbone.side_multiple)
    pads = [(0, -side % multiple) for side in images.shape[1:3]]
    images = jnp.pad(images, ((0, 0), *pads, (0, 0)))
    return self.backbone(images, train=train)

  def _padded(self, sizes: Sizes) -> Sizes:
    """Heights and widths of the images with their own padding."""
    return -(-sizes // self.size_divisor) * self.size_divisor

  def _own(self, outputs: dense.Outputs, sizes: Sizes) -> Bool[Array, 'b n']:
    """Which anchors of the canvas lie within each image's own padding."""
    return anchor_ops.within_padding(
      outputs.anchors, outputs.sizes, self._padded(sizes)
    )

  def _giving(self, outputs: dense.Outputs, sizes: Sizes) -> Bool[Array, 'b n']:
    """Which anchors give proposals and detections."""
    own = self._own(outputs, sizes)
    return jnp.ones_like(own) if self.padding_anchors else own


def sizes_of(images: Images, sizes: Sizes | None) -> Int[Array, 'b 2']:
  """Heights and widths of images; without any, those of the canvas.

  Raises:
    ValueError: There is not one height and one width for each image.
  """
  if sizes is None:
    return jnp.tile(jnp.asarray(images.shape[1:3]), (len(images), 1))
  if sizes.shape != (len(images), 2):
    raise ValueError(
      f'Sizes of shape {sizes.shape} for {len(images)} images; '
      f'[{len(images)}, 2] is needed: the valid height and width of each.'
    )
  return jnp.asarray(sizes)


def without_duplicates(
  boxes: Float[Array, 'b n 4'],
  scores: Float[Array, 'b n'],
  labels: Int[Array, 'b n'],
  *,
  score_threshold: float,
  nms_threshold: float,
  most: int,
) -> Detections:
  """The best candidates that overlap no better one of their class too much.

  mmdetection does this in pixels of the original image; overlaps are the same.

  Args:
    boxes: Candidates.
    scores: Their scores.
    labels: Their classes.
    score_threshold: What a score must exceed.
    nms_threshold: Largest overlap of two detections of a class.
    most: Detections to keep, and to pad to.
  """
  kept = nms.batched_nms(
    boxes, scores, labels, scores > score_threshold, nms_threshold, most
  )
  return Detections(
    *(dense.take(x, kept.index) for x in (boxes, scores, labels)), kept.valid
  )
