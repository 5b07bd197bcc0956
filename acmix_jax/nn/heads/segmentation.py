"""Heads of semantic segmentation: maps of several sizes to logits of pixels.

Source: `FPNHead`, `UPerHead` and `FCNHead` of mmsegmentation, which versions
0.11 (Swin's), 0.13 (PVT's) and 0.30 compute alike.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from acmix_jax.nn import layers
from acmix_jax.ops import resize

# What a head is called with: maps of the same images, finest first.
Maps = Sequence[Float[Array, 'b _h _w _c']]


class SegmentationHead(nn.Module):
  """Base of the heads.

  Attributes:
    num_classes: Number of logits.
    features: Channels of the head's maps.
    dropout: Probability that a channel of an image is dropped in training,
      before the last layer.
    dtype: Computation dtype.
    param_dtype: Parameter dtype.
  """

  num_classes: int
  features: int
  dropout: float = 0.1
  dtype: DTypeLike = jnp.float32
  param_dtype: DTypeLike = jnp.float32

  def _conv(self, kernel_size, name):
    return layers.ConvNormRelu(
      self.features, kernel_size, self.dtype, self.param_dtype, name=name
    )

  def _classify(self, x, train):
    drop = nn.Dropout(self.dropout, broadcast_dims=(1, 2), name='drop')
    conv = layers.Conv(
      self.num_classes,
      1,
      use_bias=True,
      kernel_init=nn.initializers.normal(0.01),
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      name='classifier',
    )
    return conv(drop(x, deterministic=not train))


class SemanticFPNHead(SegmentationHead):
  """Levels of a pyramid, brought to the size of the finest and added.

  Level k passes k 3x3 convolutions and is doubled after each; the finest passes
  one and keeps its size. A level that is not of the finest one's size then,
  because sides were odd, is resized to it.

  Paper: Kirillov et al., Panoptic Feature Pyramid Networks, CVPR 2019.
  """

  @nn.compact
  def __call__(self, maps: Maps, *, train: bool) -> Float[Array, 'b h w k']:
    """Logits of the pixels of the finest map."""
    total = 0
    for level, x in enumerate(maps):
      for i in range(max(1, level)):
        x = self._conv(3, f'level{level}_{i}')(x, train=train)
        if level:
          x = resize.bilinear(x, (2 * x.shape[1], 2 * x.shape[2]))
      total += resize.bilinear(x, maps[0].shape[1:3])
    return self._classify(total, train)


class PyramidPooling(nn.Module):
  """A map with its means over grids of bins: what a pixel's surroundings are.

  Paper: Zhao et al., Pyramid Scene Parsing Network, CVPR 2017.

  Attributes:
    features: Channels of each grid's means, and of the output.
    bins: Bins along each side, of each grid. Of 1 bin, a batch of one image has
      one value a channel, with which batch normalisation cannot train.
    dtype: Computation dtype.
    param_dtype: Parameter dtype.
  """

  features: int
  bins: Sequence[int] = (1, 2, 3, 6)
  dtype: DTypeLike = jnp.float32
  param_dtype: DTypeLike = jnp.float32

  def setup(self):
    dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    self.convs = [
      layers.ConvNormRelu(self.features, 1, **dtypes, name=f'grid{i}')
      for i in range(len(self.bins))
    ]
    self.bottleneck = layers.ConvNormRelu(self.features, 3, **dtypes)

  def grids(
    self, x: Float[Array, 'b h w c'], *, train: bool
  ) -> list[Float[Array, 'b _bins _bins f']]:
    """The means over each grid, mapped."""
    return [
      conv(resize.adaptive_average_pool(x, bins), train=train)
      for conv, bins in zip(self.convs, self.bins, strict=True)
    ]

  def __call__(
    self, x: Float[Array, 'b h w c'], *, train: bool
  ) -> Float[Array, 'b h w f']:
    """A 3x3 convolution of the map and all grids, resized to it."""
    return self.bottleneck(x, *self.grids(x, train=train), train=train)


class UPerHead(SegmentationHead):
  """Pyramid pooling of the coarsest map, and a pyramid of all.

  The sums of the pyramid are passed on to the finer level as they are, before
  their own 3x3 convolution, which the coarsest level does not have.

  Paper: Xiao et al., Unified Perceptual Parsing for Scene Understanding, ECCV
  2018.

  Attributes:
    bins: Bins along each side, of each grid of the pooling.
  """

  bins: Sequence[int] = (1, 2, 3, 6)

  @nn.compact
  def __call__(self, maps: Maps, *, train: bool) -> Float[Array, 'b h w k']:
    """Logits of the pixels of the finest map."""
    *finer, coarsest = maps
    pooling = PyramidPooling(
      self.features, self.bins, self.dtype, self.param_dtype, name='pooling'
    )
    sums = [
      self._conv(1, f'lateral{i}')(x, train=train) for i, x in enumerate(finer)
    ]
    sums.append(pooling(coarsest, train=train))
    for i in reversed(range(len(finer))):
      sums[i] += resize.bilinear(sums[i + 1], sums[i].shape[1:3])
    levels = [
      self._conv(3, f'output{i}')(x, train=train)
      for i, x in enumerate(sums[:-1])
    ]
    x = self._conv(3, 'fusion')(*levels, sums[-1], train=train)
    return self._classify(x, train)


class FCNHead(SegmentationHead):
  """A 3x3 convolution of one map, and logits: an auxiliary head.

  Paper: Long et al., Fully Convolutional Networks for Semantic Segmentation,
  CVPR 2015.
  """

  @nn.compact
  def __call__(
    self, x: Float[Array, 'b h w c'], *, train: bool
  ) -> Float[Array, 'b h w k']:
    """Logits of the pixels of the map."""
    return self._classify(self._conv(3, 'conv')(x, train=train), train)
