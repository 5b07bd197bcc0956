"""ACmix: attention and convolution from the same projections.

Paper: Pan et al., On the Integration of Self-Attention and Convolution, CVPR
2022, section 4: out = alpha * attention(q, k, v) + beta * convolution(q, k, v).
"""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from acmix_jax.nn import attention, checks, layers, local_attention
from acmix_jax.ops import shift_convolution, windows


class ConvolutionPath(nn.Module):
  """The convolution path of ACmix alone, on the projections of any attention.

  A small fully connected layer, shared by the d channels, makes kernel_size**2
  maps of those of q, k and v, and a grouped (depthwise) convolution that starts
  as shifts sums them. Output channel c of the convolution is output c % n of
  group c // n, while heads are contiguous in the attention: the two are added
  as they are, as in the source.

  Maps of a coarser grid than the queries' are repeated to it, and pixels that
  are padding are zeros after the fully connected layer, as beyond the border.
  Neither case is in the source.

  Source: LeapLabTHU/ACmix, both `ACmix` modules (`fc` is fc_kernel, `dep_conv`
  depthwise_kernel). Here the start value of the depthwise kernel survives the
  construction of any model; the official ResNet overwrites it.

  Attributes:
    attention: Attention of which stage I is used; make it with `parent=None`.
    kernel_size: Odd side of the shift convolution.
    strides: Strides of the convolution path, equal to the attention's.
    dilation: Dilation of the convolution path.
    use_fc_bias: Whether the fully connected layer has a bias (Swin).
    fc_init: Start value of the fully connected layer. Default: PyTorch's.
    implementation: Implementation of `ops.shift_convolution`.
    dtype: Computation dtype; None: that of the projections.
    param_dtype: Parameter dtype.
  """

  attention: attention.Attention
  kernel_size: int = 3
  strides: int = 1
  dilation: int = 1
  use_fc_bias: bool = False
  fc_init: nn.initializers.Initializer = layers.TORCH_KERNEL
  implementation: str = 'auto'
  dtype: DTypeLike | None = None
  param_dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, 'b *pixels c'], **context: Any
  ) -> Float[Array, 'b *outputs f']:
    """Convolves a map, or a sequence if the attention takes one.

    The tokens of a sequence, which have no neighbours, get zeros.
    """
    projections = self.attention.project(x, **context)
    return self.convolve(x, projections, self._convolution())

  def convolve(
    self,
    x: Float[Array, 'b *pixels c'],
    projections: attention.Projections,
    convolution: attention.Convolution,
  ) -> Float[Array, 'b *outputs f']:
    """Stage II of the path, of the projections of x."""
    maps, valid = self.attention.convolution_maps(projections)
    inputs = sum(x.shape[3] for x in maps)
    features = projections.v.shape[3] * projections.v.shape[4]
    out = shift_convolution.shift_convolution(
      [x.astype(self.dtype or x.dtype) for x in maps],
      *convolution.make_weights(inputs, features),
      valid=valid,
      strides=convolution.strides,
      dilation=convolution.dilation,
      implementation=convolution.implementation,
    )
    if x.ndim == 3:
      out = out.reshape(out.shape[0], -1, out.shape[-1])
      out = jnp.pad(out, ((0, 0), (x.shape[1] - out.shape[1], 0), (0, 0)))
    return out

  def _convolution(self):
    """Weights and options of the path."""
    windows.check_window('ACmix', self.kernel_size, self.strides, self.dilation)
    return attention.Convolution(
      self._make_weights,
      self.use_fc_bias,
      self.strides,
      self.dilation,
      self.implementation,
      self.dtype,
    )

  def _make_weights(self, inputs, features):
    taps = self.kernel_size**2
    fc_kernel = self.param(
      'fc_kernel', self.fc_init, (inputs, taps), self.param_dtype
    )
    fc_bias = None
    if self.use_fc_bias:
      init = layers.torch_bias(inputs)
      fc_bias = self.param('fc_bias', init, (taps,), self.param_dtype)
    depthwise_kernel = self.param('depthwise_kernel', self._shifts, features)
    return fc_kernel, depthwise_kernel, fc_bias

  def _shifts(self, key, features):
    del key
    kernel = shift_convolution.shift_kernel(self.kernel_size, features)
    return kernel.astype(self.param_dtype)


class Hybrid(ConvolutionPath):
  """ACmix of any attention: alpha * attention + beta * convolution.

  The tokens of a sequence, which have no place in the map, skip the convolution
  path.

  Source: LeapLabTHU/ACmix, both `ACmix` modules (`rate1` is alpha, `rate2`
  beta). Fields: those of `ConvolutionPath`.
  """

  @nn.compact
  def __call__(
    self, x: Float[Array, 'b *pixels c'], **context: Any
  ) -> Float[Array, 'b *outputs f']:
    """Adds both paths of a map, or of a sequence if the attention takes one."""
    half = nn.initializers.constant(0.5)
    alpha = self.param('alpha', half, (), self.param_dtype)
    beta = self.param('beta', half, (), self.param_dtype)
    convolution = self._convolution()
    both = self.attention.sum_of_paths(x, convolution, alpha, beta, **context)
    if both is not None:
      return both
    projections = self.attention.project(x, **context)
    attended = self.attention.aggregate(projections)
    convolved = self.convolve(x, projections, convolution)
    return alpha.astype(attended.dtype) * attended + (
      beta.astype(convolved.dtype) * convolved
    )


# What `make_operator` makes of an attention.
OPERATORS = ('attention', 'acmix', 'shift_convolution')


def make_operator(
  operator: str, attention: attention.Attention, **options: Any
) -> nn.Module:
  """ACmix of an attention, or one of its two paths alone.

  Args:
    operator: 'acmix', or the path: 'attention' or 'shift_convolution'.
    attention: Attention, made with `parent=None`.
    **options: Fields of `ConvolutionPath`.

  Raises:
    ValueError: `operator` is none of these.
  """
  checks.check_choice('ACmix', 'operator', operator, OPERATORS)
  if operator == 'attention':
    return attention
  layer = Hybrid if operator == 'acmix' else ConvolutionPath
  return layer(attention, parent=None, **options)


class ACmix(nn.Module):
  """The ResNet operator: a drop-in for `nn.Conv(features, (3, 3))`.

    y = acmix_jax.ACmix(64)(x)  # [b, h, w, c] -> [b, h, w, 64]

  Source: LeapLabTHU/ACmix ResNet/test_bottleneck.py. Here maps are NHWC, and
  any float dtype, odd maps at stride 2, dilation and any odd kernel_conv work.

  Attributes:
    features: Output channels, a multiple of num_heads.
    num_heads: Heads of the attention and groups of maps of the convolution.
    kernel_att: Odd side of the attention window; maps must have sides larger
      than dilation * (kernel_att - 1) / 2.
    kernel_conv: Odd side of the shift convolution.
    strides: Pixels between outputs: a side of h pixels gives ceil(h / strides).
    dilation: Dilation of the attention window and of the convolution.
    kernel_init: Start value of the projections and of the fully connected
      layer. Default: PyTorch's.
    dtype: Computation dtype; None: that of the input and parameters.
    param_dtype: Parameter dtype.
    attention_implementation: Implementation of `ops.local_attention`.
    convolution_implementation: Implementation of `ops.shift_convolution`.

  Raises:
    ValueError: At trace time: features not divisible by num_heads, even
      kernels, strides < 1, a map of another rank or too small to reflect.
  """

  features: int
  num_heads: int = 4
  kernel_att: int = 7
  kernel_conv: int = 3
  strides: int = 1
  dilation: int = 1
  kernel_init: nn.initializers.Initializer = layers.TORCH_KERNEL
  dtype: DTypeLike | None = None
  param_dtype: DTypeLike = jnp.float32
  attention_implementation: str = 'auto'
  convolution_implementation: str = 'auto'

  @nn.compact
  def __call__(self, x: Float[Array, 'b h w c']) -> Float[Array, 'b ho wo f']:
    """Applies the operator to a map."""
    shared = dict(
      strides=self.strides,
      dilation=self.dilation,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
    )
    attention = local_attention.LocalAttention(
      self.features,
      self.num_heads,
      self.kernel_att,
      implementation=self.attention_implementation,
      kernel_init=self.kernel_init,
      parent=None,
      **shared,
    )
    hybrid = Hybrid(
      attention,
      self.kernel_conv,
      fc_init=self.kernel_init,
      implementation=self.convolution_implementation,
      **shared,
    )
    nn.share_scope(self, hybrid)
    return hybrid(x)
