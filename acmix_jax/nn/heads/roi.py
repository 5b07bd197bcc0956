"""Heads of Mask R-CNN and its cascade: regions to classes, boxes and masks."""

import functools

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from acmix_jax.nn import layers
from acmix_jax.ops import dense

_XAVIER = nn.initializers.xavier_uniform()


class BoxHead(nn.Module):
  """Convolutions, fully connected layers, then class logits and box deltas.

  Mask R-CNN has two fully connected layers (mmdetection's Shared2FCBBoxHead),
  Swin's cascade four convolutions with batch normalisation and one layer
  (4conv1fc). Regions that are no more than padding leave the statistics alone.

  Attributes:
    num_classes: Classes without background.
    num_convs: 3x3 convolutions, each with a norm.
    num_dense: Fully connected layers.
    features: Channels of the convolutions.
    hidden: Outputs of each fully connected layer.
    batch_norm: What the norms train, one of `layers.BATCH_NORM_MODES`.
    dtype: Computation dtype.
    param_dtype: Parameter dtype.
  """

  num_classes: int
  num_convs: int = 0
  num_dense: int = 2
  features: int = 256
  hidden: int = 1024
  batch_norm: str = 'batch'
  dtype: DTypeLike = jnp.float32
  param_dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'n h w c'],
    valid: Bool[Array, ' n'] | None = None,
    *,
    train: bool = False,
  ) -> tuple[Float[Array, 'n _k'], Float[Array, 'n k 4']]:
    """Maps features of regions to outputs.

    Args:
      x: Features of the regions.
      valid: Which regions are no padding; None: all.
      train: Whether to normalise by the statistics of the regions.

    Returns:
      Logits of the classes, background last, and deltas of the box of each
      class.
    """
    dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    for i in range(self.num_convs):
      conv = layers.Conv(
        self.features,
        3,
        kernel_init=layers.KAIMING_FAN_OUT,
        **dtypes,
        name=f'conv{i}',
      )
      norm = layers.BatchNorm(mode=self.batch_norm, **dtypes, name=f'norm{i}')
      x = nn.relu(_normalise(norm, conv(x), valid, train))
    dense = functools.partial(nn.DenseGeneral, kernel_init=_XAVIER, **dtypes)
    axes = (-3, -2, -1)
    for i in range(self.num_dense):
      x = nn.relu(dense(self.hidden, axis=axes, name=f'dense{i}')(x))
      axes = -1
    normal = nn.initializers.normal
    logits = nn.Dense(
      self.num_classes + 1, kernel_init=normal(0.01), **dtypes, name='classes'
    )(x)
    deltas = nn.Dense(
      self.num_classes * 4, kernel_init=normal(0.001), **dtypes, name='boxes'
    )(x)
    return logits, deltas.reshape(-1, self.num_classes, 4)


def _normalise(norm, x, valid, train):
  """Batch normalisation by the statistics of the valid regions."""
  moments = _moments(x, valid) if norm.uses_batch(train) else None
  factor, offset = norm.affine(x.shape[-1], moments)
  per_map = (1, 1, 1, x.shape[-1])
  y = x.astype(jnp.float32) * factor.reshape(per_map)
  y += offset.reshape(per_map)
  return y.astype(x.dtype)


def _moments(x, valid) -> layers.Moments:
  """Statistics over the pixels of the valid regions [n, h, w, c]."""
  if valid is None:
    return layers.batch_moments(x)
  x = x.astype(jnp.float32)
  valid = valid.astype(jnp.float32)
  regions = jnp.maximum(valid.sum(), 1)
  weights = (valid / regions)[:, None]
  mean, square = (
    (weights * y.mean(axis=(1, 2))).sum(axis=0, keepdims=True)
    for y in (x, jnp.square(x))
  )
  return layers.Moments(mean, square, regions * x.shape[1] * x.shape[2])


class MaskHead(nn.Module):
  """3x3 convolutions, upsampling by 2, then a logit of each class and pixel.

  Source: He et al., "Mask R-CNN", figure 4 right; start values of mmdetection's
  FCNMaskHead (those of the release that trained Swin's cascades).

  Attributes:
    num_classes: Classes.
    depth: Convolutions before the upsampling.
    features: Their channels.
    dtype: Computation dtype.
    param_dtype: Parameter dtype.
  """

  num_classes: int
  depth: int = 4
  features: int = 256
  dtype: DTypeLike = jnp.float32
  param_dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'n h w c'],
    labels: Int[Array, ' n'] | None = None,
  ) -> Float[Array, 'n 2*h 2*w *k']:
    """Maps features of regions to logits.

    Args:
      x: Features of the regions.
      labels: The class of each region whose logits are wanted; the others are
        then never computed. None: all classes.

    Returns:
      Logits [n, 2h, 2w] of the labels, or [n, 2h, 2w, k] of all classes.
    """
    init = layers.KAIMING_FAN_OUT
    dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    for i in range(self.depth):
      conv = layers.Conv(
        self.features,
        3,
        use_bias=True,
        kernel_init=init,
        **dtypes,
        name=f'conv{i}',
      )
      x = nn.relu(conv(x))
    # The four pixels go to their places as logits, which are fewer values.
    x = nn.relu(Upsample(self.features, **dtypes, name='upsample')(x))
    shape = (self.features, self.num_classes)
    kernel = self.param('classes_kernel', init, shape, self.param_dtype)
    bias = self.param(
      'classes_bias', nn.initializers.zeros, self.num_classes, self.param_dtype
    )
    x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
    if labels is None:
      return _interleave(x @ kernel) + bias[None, None, None]
    logits = jnp.einsum('nhwijc,nc->nhwij', x, kernel.T[labels])
    return _interleave(logits) + bias[labels][:, None, None]


class Upsample(nn.Module):
  """A transposed convolution by 2x2 with stride 2: each pixel becomes four.

  Attributes:
    features: Output channels.
    dtype: Computation dtype.
    param_dtype: Parameter dtype.
  """

  features: int
  dtype: DTypeLike = jnp.float32
  param_dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, 'n h w c']) -> Float[Array, 'n h w 2 2 f']:
    """Pixel [2i + di, 2j + dj] is x[i, j] @ kernel[di, dj] + bias.

    Returns:
      The pixels as [i, j, di, dj].
    """
    channels = x.shape[-1]
    shape = (2, 2, channels, self.features)
    init = layers.KAIMING_FAN_OUT
    kernel = self.param('kernel', init, shape, self.param_dtype)
    bias = self.param(
      'bias', nn.initializers.zeros, self.features, self.param_dtype
    )
    x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
    kernel = kernel.transpose(2, 0, 1, 3).reshape(channels, -1)
    y = dense.dense(x, kernel, jnp.tile(bias, 4))
    return y.reshape(*x.shape[:3], 2, 2, -1)


def _interleave(
  x: Float[Array, 'n h w 2 2 *k'],
) -> Float[Array, 'n 2*h 2*w *k']:
  """Pixel [i, j, di, dj] goes to [2i + di, 2j + dj]."""
  n, h, w, _, _, *k = x.shape
  return x.swapaxes(2, 3).reshape(n, 2 * h, 2 * w, *k)
