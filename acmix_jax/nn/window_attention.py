"""Attention within the windows that tile a map: the attention of Swin."""

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float

from acmix_jax.nn import attention, checks, transformer
from acmix_jax.ops import shift_convolution, shifted_windows, window_acmix


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
    self._check(x)
    size = size or x.shape[1:3]
    maps = self.query_key_value(x)
    maps = maps.reshape(*x.shape[:3], 3 * self.num_heads, -1)
    q, k, v = jnp.split(maps, 3, axis=3)
    return WindowProjections(q, k, v, maps, size, shift)

  def aggregate(
    self, projections: WindowProjections
  ) -> Float[Array, 'b h w f']:
    """Attention within windows."""
    size = projections.size
    if self.attend_padding:
      size = projections.q.shape[1:3]
    out = shifted_windows.window_attention(
      projections.stacked,
      self._window_bias(),
      window_size=self.window_size,
      size=size,
      shift=projections.shift,
    )
    return self.out(out.reshape(*out.shape[:3], self.features))

  def convolution_maps(
    self, projections: WindowProjections
  ) -> attention.ConvolutionMaps:
    """All maps in the one array that they are slices of, zero in padding."""
    valid = shifted_windows.valid_pixels(
      *projections.size, self.window_size, projections.shift
    )
    if valid is None:
      return attention.ConvolutionMaps([projections.stacked])
    stacked = jnp.where(valid[None, :, :, None, None], projections.stacked, 0)
    return attention.ConvolutionMaps([stacked], valid)

  def sum_of_paths(
    self,
    x: Float[Array, 'b h w c'],
    convolution: attention.Convolution,
    alpha: ArrayLike,
    beta: ArrayLike,
    *,
    size: tuple[int, int] | None = None,
    shift: int = 0,
  ) -> Float[Array, 'b h w f'] | None:
    """Both projections and both paths as one operator.

    None if an implementation was asked for, the dtypes of the paths differ, or
    the convolution has strides or a dilation.
    """
    window = convolution.strides, convolution.dilation
    chosen = convolution.implementation, convolution.dtype
    if chosen != ('auto', self.dtype) or window != (1, 1):
      return None
    self._check(x)
    size = size or x.shape[1:3]
    kernel, bias = self.query_key_value.weights(x.shape[3])
    window_bias = self._window_bias()
    out_kernel, out_bias = self.out.weights(self.features)
    fc_kernel, depthwise_kernel, fc_bias = convolution.make_weights(
      3 * self.num_heads, self.features
    )
    # All is linear in the outputs of either path: products of weights.
    offset = jnp.broadcast_to(alpha * out_bias, (*x.shape[1:3], self.features))
    if fc_bias is not None:
      valid = shifted_windows.valid_pixels(*size, self.window_size, shift)
      if valid is None:
        valid = np.ones(x.shape[1:3], bool)
      offset += beta * shift_convolution.convolve_bias(
        fc_bias, depthwise_kernel, valid
      )
    folded = jnp.einsum('mt,yxtc->yxmc', beta * fc_kernel, depthwise_kernel)
    x, kernel, bias, out_kernel, folded = nn.dtypes.promote_dtype(
      x, kernel, bias, alpha * out_kernel, folded, dtype=self.dtype
    )
    return window_acmix.window_acmix(
      *(x, kernel, bias, window_bias, out_kernel, folded, offset),
      window_size=self.window_size,
      size=size,
      shift=shift,
      attend_padding=self.attend_padding,
    )

  @nn.compact
  def _window_bias(self):
    """The bias of each head, query and key."""
    bias = self.param(
      'bias',
      transformer.NORMAL,
      ((2 * self.window_size - 1) ** 2, self.num_heads),
      self.param_dtype,
    )
    return shifted_windows.relative_bias(bias, self.window_size)

  def _check(self, x):
    """Raises ValueError for a map of other sizes."""
    checks.check_map('WindowAttention', x)
    shifted_windows.check_whole(
      'WindowAttention', *x.shape[1:3], self.window_size
    )


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
