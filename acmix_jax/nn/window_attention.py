"""Attention within the windows that tile a map: the attention of Swin."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from acmix_jax.nn import attention, checks, transformer
from acmix_jax.ops import shifted_windows


class WindowAttention(attention.Attention):
  """Attention of the pixels of a window to one another, with a learned bias.

  The bias has one entry a head for each offset between two pixels, and is added
  to the scaled logits.

  Source: LeapLabTHU/ACmix Swin-Transformer/models/swin_transformer_acmix.py,
  `WindowAttention_acmix`, and microsoft/Swin-Transformer. With ACmix, alpha
  weights the attention after its output projection, which the convolution path
  does not pass, and the convolution runs over the whole map, not in windows.

  Attributes:
    features: output channels, a multiple of num_heads.
    num_heads: heads; head_dim = features // num_heads.
    window_size: side of a window.
    dtype: of the computation; default that of the input and parameters.
    param_dtype: of the parameters.
  """

  features: int
  num_heads: int
  window_size: int = 7
  dtype: jnp.dtype | None = None
  param_dtype: jnp.dtype = jnp.float32

  def setup(self):
    checks.check_heads('WindowAttention', self.features, self.num_heads)
    dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    self.query_key_value = transformer.Linear(3 * self.features, **dtypes)
    self.out = transformer.Linear(self.features, **dtypes)
    self.bias = self.param(
      'bias',
      transformer.NORMAL,
      ((2 * self.window_size - 1) ** 2, self.num_heads),
      self.param_dtype,
    )

  def project(
    self, x: jax.Array, regions: np.ndarray | None = None
  ) -> attention.Projections:
    """Queries, keys and values [b, h, w, n, d], zero where x is padding.

    Args:
      x: [b, h, w, c], whole windows.
      regions: int [h, w] of `ops.shifted_windows.shift_regions`: pixels attend
        to those of their own region alone; negative for padding.

    Raises:
      ValueError: the map is not made of whole windows.
    """
    checks.check_map('WindowAttention', x)
    _, h, w, _ = x.shape
    if h % self.window_size or w % self.window_size:
      raise ValueError(
        f'WindowAttention: a {h}x{w} map is not made of whole windows of '
        f'window_size={self.window_size}; ShiftedWindows pads it to them.'
      )
    maps = self.query_key_value(x)
    valid = None
    if regions is not None and regions.min() < 0:
      valid = regions >= 0
      maps = jnp.where(valid[None, :, :, None], maps, 0)
    maps = maps.reshape(*x.shape[:3], 3 * self.num_heads, -1)
    q, k, v = jnp.split(maps, 3, axis=3)
    return attention.Projections(q, k, v, regions, valid, stacked=maps)

  def aggregate(self, projections: attention.Projections) -> jax.Array:
    """Attention within windows: [b, h, w, features]."""
    out = shifted_windows.window_attention(
      projections.q,
      projections.k,
      projections.v,
      shifted_windows.relative_bias(self.bias, self.window_size),
      projections.context,
      window_size=self.window_size,
    )
    return self.out(out.reshape(*out.shape[:3], self.features))


class ShiftedWindows(nn.Module):
  """Runs a layer of windows on maps of any size, shifted by half a window.

  The map is padded to whole windows and rolled, and the layer told which
  pixels were neighbours before. With ACmix its convolution sees the rolled map:
  opposite borders touch at the seam, and zeros are beyond it.

  Source: the blocks of microsoft/Swin-Transformer and LeapLabTHU/ACmix (same
  files as `WindowAttention`); identical to them on maps of whole windows, with
  no shift where one window spans the shorter side. They take no other maps.
  Differs from Swin's detectors, which pad too: padding is masked, so that the
  output does not depend on it; there it is attended.

  Attributes:
    layer: the attention or its ACmix; make it with `parent=None`.
    window_size: side of a window.
    shifted: whether to shift; the blocks of a stage alternate.
  """

  layer: nn.Module
  window_size: int = 7
  shifted: bool = False

  def setup(self):
    nn.share_scope(self, self.layer)

  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [b, h, w, c] to the same shape."""
    _, h, w, _ = x.shape
    size = self.window_size
    shift = size // 2 if self.shifted and min(h, w) > size else 0
    y = jnp.pad(x, ((0, 0), (0, -h % size), (0, -w % size), (0, 0)))
    y = jnp.roll(y, (-shift, -shift), (1, 2))
    y = self.layer(y, shifted_windows.shift_regions(h, w, size, shift))
    return jnp.roll(y, (shift, shift), (1, 2))[:, :h, :w]
