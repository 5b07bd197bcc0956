"""Attention within the windows that tile a map: the attention of Swin."""

import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from acmix_jax.nn import attention, checks, transformer
from acmix_jax.ops import shifted_windows


@struct.dataclass
class WindowProjections(attention.Projections):
  """Projections of a map that was padded to whole windows and rolled.

  Attributes:
    stacked: Array of which q, k and v are slices.
    size: Height and width of the map before it was padded.
    shift: Rows and columns the padded map was rolled by, up and left.
  """

  stacked: Float[Array, 'b h w 3*n d']
  size: tuple[int, int] = struct.field(pytree_node=False)
  shift: int = struct.field(pytree_node=False)


class WindowAttention(attention.Attention):
  """Attention of the pixels of a window to one another, with a learned bias.

  The bias has one entry a head for each offset between two pixels, and is added
  to the scaled logits.

  Source: LeapLabTHU/ACmix Swin-Transformer/models/swin_transformer_acmix.py,
  `WindowAttention_acmix`, and microsoft/Swin-Transformer. With ACmix, alpha
  weights the attention after its output projection, which the convolution path
  does not pass, and the convolution runs over the whole map, not in windows.

  Attributes:
    features: Output channels, a multiple of num_heads.
    num_heads: Heads; head_dim = features // num_heads.
    window_size: Side of a window.
    attend_padding: Whether pixels attend to padding, too, whose keys and values
      are the biases of the projection.
    dtype: Computation dtype; None: that of the input and parameters.
    param_dtype: Parameter dtype.
  """

  features: int
  num_heads: int
  window_size: int = 7
  attend_padding: bool = False
  dtype: DTypeLike | None = None
  param_dtype: DTypeLike = jnp.float32

  def setup(self):
    checks.check_heads('WindowAttention', self.features, self.num_heads)
    dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    self.query_key_value = transformer.dense(3 * self.features, **dtypes)
    self.out = transformer.dense(self.features, **dtypes)

  def project(
    self,
    x: Float[Array, 'b h w c'],
    *,
    size: tuple[int, int] | None = None,
    shift: int = 0,
  ) -> WindowProjections:
    """Queries, keys and values.

    Args:
      x: Map of whole windows.
      size: Height and width of x before it was padded; None: it was not.
      shift: Rows and columns x was rolled by, up and left; pixels attend to
        those alone that were their neighbours before.

    Raises:
      ValueError: The map is not made of whole windows.
    """
    checks.check_map('WindowAttention', x)
    _, h, w, _ = x.shape
    if h % self.window_size or w % self.window_size:
      raise ValueError(
        f'WindowAttention: a {h}x{w} map is not made of whole windows of '
        f'window_size={self.window_size}; ShiftedWindows pads it to them.'
      )
    size = size or (h, w)
    maps = self.query_key_value(x)
    maps = maps.reshape(*x.shape[:3], 3 * self.num_heads, -1)
    q, k, v = jnp.split(maps, 3, axis=3)
    return WindowProjections(q, k, v, maps, size, shift)

  @nn.compact
  def aggregate(
    self, projections: WindowProjections
  ) -> Float[Array, 'b h w f']:
    """Attention within windows."""
    bias = self.param(
      'bias',
      transformer.NORMAL,
      ((2 * self.window_size - 1) ** 2, self.num_heads),
      self.param_dtype,
    )
    size = projections.size
    if self.attend_padding:
      size = projections.q.shape[1:3]
    out = shifted_windows.window_attention(
      projections.q,
      projections.k,
      projections.v,
      shifted_windows.relative_bias(bias, self.window_size),
      self._regions(size, projections.shift),
      window_size=self.window_size,
    )
    return self.out(out.reshape(*out.shape[:3], self.features))

  def convolution_maps(
    self, projections: WindowProjections
  ) -> attention.ConvolutionMaps:
    """All maps in the one array that they are slices of, zero in padding."""
    regions = self._regions(projections.size, projections.shift)
    if regions is None or regions.min() >= 0:
      return attention.ConvolutionMaps([projections.stacked])
    valid = regions >= 0
    stacked = jnp.where(valid[None, :, :, None, None], projections.stacked, 0)
    return attention.ConvolutionMaps([stacked], valid)

  def _regions(self, size, shift):
    return shifted_windows.shift_regions(*size, self.window_size, shift)


class ShiftedWindows(nn.Module):
  """Runs a layer of windows on maps of any size, shifted by half a window.

  The map is padded to whole windows and rolled, and the layer told which
  pixels were neighbours before. With ACmix its convolution sees the rolled map:
  opposite borders touch at the seam, and zeros are beyond it.

  Source: the blocks of microsoft/Swin-Transformer and LeapLabTHU/ACmix (same
  files as `WindowAttention`); identical to them on maps of whole windows, with
  no shift where one window spans the shorter side. They take no other maps.
  Swin's detectors and segmenters pad, too, and attend to the padding
  (`attend_padding` of the layer); otherwise it is masked, so that the output
  does not depend on it. The convolution of ACmix, which they do not have, sees
  zeros there in either case.

  Attributes:
    layer: Attention or its ACmix; make it with `parent=None`.
    window_size: Side of a window.
    shifted: Whether to shift; the blocks of a stage alternate.
    shift_small_maps: Whether this holds, too, where one window spans the
      shorter side, as in Swin's detectors and segmenters.
  """

  layer: nn.Module
  window_size: int = 7
  shifted: bool = False
  shift_small_maps: bool = False

  def setup(self):
    nn.share_scope(self, self.layer)

  def __call__(self, x: Float[Array, 'b h w c']) -> Float[Array, 'b h w f']:
    """Applies the layer to a map."""
    _, h, w, _ = x.shape
    size = self.window_size
    shifts = self.shifted and (self.shift_small_maps or min(h, w) > size)
    shift = size // 2 if shifts else 0
    y = jnp.pad(x, ((0, 0), (0, -h % size), (0, -w % size), (0, 0)))
    y = jnp.roll(y, (-shift, -shift), (1, 2))
    y = self.layer(y, size=(h, w), shift=shift)
    return jnp.roll(y, (shift, shift), (1, 2))[:, :h, :w]
