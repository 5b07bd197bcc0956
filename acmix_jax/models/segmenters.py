"""Segmenters: a backbone with a head that gives logits of pixels."""

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Float32

from acmix_jax.models.backbones import backbone as backbone_lib
from acmix_jax.nn import checks
from acmix_jax.nn.heads import fpn, segmentation


class Segmenter(nn.Module):
  """A dense head on a backbone.

  The variables are {'backbone', 'neck', 'head', 'auxiliary'} of each
  collection, as far as there are such parts.

  Images of any size: where a backbone would drop pixels (SAN, PVT), they are
  padded, right and below, with zeros, the mean colour, to sides that it takes
  whole, and the logits cut to the image. The sources resize images to such
  sides (PVT) or have no such backbone.

  Attributes:
    backbone: Backbone.
    neck: Neck; None: the head takes the stages as they are.
    head: Head, of all stages or all levels of the neck.
    auxiliary: Head of the last stage but one, for training alone; None: none.
  """

  backbone: backbone_lib.Backbone
  neck: fpn.FPN | None
  head: segmentation.SegmentationHead
  auxiliary: segmentation.SegmentationHead | None = None

  def features(
    self, images: Float[Array | np.ndarray, 'b h w 3'], *, train: bool = False
  ) -> backbone_lib.Stages:
    """Maps normalised images, padded if need be, to the backbone's stages."""
    checks.check_map('Segmenter', images)
    multiple = self.backbone.side_multiple
    pads = [(0, -side % multiple) for side in images.shape[1:3]]
    images = jnp.pad(images, ((0, 0), *pads, (0, 0)))
    return self.backbone(images, train=train)

  def __call__(
    self, images: Float[Array | np.ndarray, 'b h w 3'], *, train: bool = False
  ) -> Float32[Array, 'b ho wo k']:
    """Maps normalised images to logits of the first stage's pixels.

    There are ceil(h / s) times ceil(w / s) of them, s being the stride of that
    stage: 4.
    """
    if self.is_initializing():
      return self.training_logits(images, train=train)['head']
    return self._logits(self.features(images, train=train), images, train)

  def training_logits(
    self, images: Float[Array | np.ndarray, 'b h w 3'], *, train: bool = True
  ) -> dict[str, Float32[Array, 'b _ho _wo k']]:
    """The logits of every head.

    Args:
      images: Normalised images.
      train: Whether norms take the statistics of the batch and dropout is on.

    Returns:
      The logits of 'head', and those of 'auxiliary' if there is one, which are
      of the last stage but one: ceil(h / 16) times ceil(w / 16).
    """
    stages = self.features(images, train=train)
    logits = {'head': self._logits(stages, images, train)}
    if self.auxiliary is not None:
      *_, (name, x), _ = stages.items()
      y = self.auxiliary(x, train=train)
      logits['auxiliary'] = self._of_image(y, name, images)
    return logits

  def _logits(self, stages, images, train):
    maps = [*stages.values()]
    if self.neck is not None:
      maps = self.neck(maps)
    first = next(iter(stages))
    return self._of_image(self.head(maps, train=train), first, images)

  def _of_image(self, logits, stage, images):
    """Float32 logits without those of the padding."""
    stride = self.backbone.strides[stage]
    h, w = (-(-side // stride) for side in images.shape[1:3])
    return logits[:, :h, :w].astype(jnp.float32)


def semantic_fpn(
  backbone: backbone_lib.Backbone,
  num_classes: int,
  *,
  neck_features: int = 256,
  neck_start: str = 'kaiming',
  head_features: int = 128,
  dropout: float = 0.1,
) -> Segmenter:
  """Semantic FPN, as PVT's segmentation code has it.

  Args:
    backbone: Backbone.
    num_classes: Number of logits.
    neck_features: Channels of the pyramid.
    neck_start: Start value of its kernels, see `FPN`.
    head_features: Channels of the head.
    dropout: Probability that a channel is dropped before the last layer.

  Raises:
    ValueError: A field is out of range.
  """
  checks.check_counts(
    'semantic_fpn', neck_features=neck_features, head_features=head_features
  )
  checks.check_rates('semantic_fpn', dropout=dropout)
  dtypes = dict(dtype=backbone.dtype, param_dtype=backbone.param_dtype)
  return Segmenter(
    backbone,
    fpn.FPN(neck_features, start=neck_start, **dtypes),
    segmentation.SemanticFPNHead(num_classes, head_features, dropout, **dtypes),
  )


def upernet(
  backbone: backbone_lib.Backbone,
  num_classes: int,
  *,
  head_features: int = 512,
  auxiliary_features: int = 256,
  bins: tuple[int, ...] = (1, 2, 3, 6),
  dropout: float = 0.1,
) -> Segmenter:
  """UperNet with an auxiliary head, as Swin's segmentation code has it.

  Args:
    backbone: Backbone.
    num_classes: Number of logits.
    head_features: Channels of the head.
    auxiliary_features: Channels of the auxiliary head.
    bins: Bins along each side of the pyramid pooling's grids.
    dropout: Probability that a channel is dropped before each last layer.

  Raises:
    ValueError: A field is out of range.
  """
  checks.check_counts(
    'upernet',
    head_features=head_features,
    auxiliary_features=auxiliary_features,
    bins=bins,
  )
  checks.check_rates('upernet', dropout=dropout)
  dtypes = dict(dtype=backbone.dtype, param_dtype=backbone.param_dtype)
  return Segmenter(
    backbone,
    None,
    segmentation.UPerHead(
      num_classes, head_features, dropout, **dtypes, bins=bins
    ),
    segmentation.FCNHead(num_classes, auxiliary_features, dropout, **dtypes),
  )
