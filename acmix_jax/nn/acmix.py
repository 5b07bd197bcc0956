"""ACmix: attention and convolution from the same projections.

Paper: Pan et al., On the Integration of Self-Attention and Convolution, CVPR
2022, section 4: out = alpha * attention(q, k, v) + beta * convolution(q, k, v).
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from acmix_jax.nn import attention, checks, layers, local_attention
from acmix_jax.ops import shift_convolution, windows


class Mix(nn.Module):
  """Adds the convolution path to any attention.

  The maps of q, k and v are mixed into kernel_size**2 maps by one small fully
  connected layer shared by the d channels, and summed by a grouped convolution
  that starts as shifts. Output channel c of the convolution is output c % n of
  group c // n, while heads are contiguous in the attention: the two are added
  as they are, as in the source.

  Where keys and values are on a coarser grid than the queries (PVT), their maps
  are brought to the grid of the queries by repetition. Pixels that are not
  `valid` (Swin's padding) are zeros after the mixing, as beyond the border.
  Neither case is in the source.

  Source: LeapLabTHU/ACmix, both `ACmix` modules (`fc` is mixing, `dep_conv` is
  shifts, `rate1` alpha, `rate2` beta). Differs: the start value of the shifts
  survives the construction of any model; the official ResNet overwrites it.

  Attributes:
    attention: the attention layer; make it with `parent=None`.
    kernel_size: odd side of the shift convolution.
    strides: of the convolution path; those of the attention.
    dilation: of the convolution path.
    mixing_bias: whether the fully connected layer has a bias (Swin).
    mixing_init: of the fully connected layer. Default: PyTorch's.
    implementation: of `ops.shift_convolution`.
    dtype: of the computation; default that of the projections.
    param_dtype: of the parameters.
  """

  attention: attention.Attention
  kernel_size: int = 3
  strides: int = 1
  dilation: int = 1
  mixing_bias: bool = False
  mixing_init: nn.initializers.Initializer = layers.TORCH_KERNEL
  implementation: str = 'auto'
  dtype: jnp.dtype | None = None
  param_dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, *context: Any) -> jax.Array:
    """Maps x [b, h, w, c] to [b, ceil(h/s), ceil(w/s), n * d].

    Or, where the attention is one of sequences, [b, t + h * w, c] to
    [b, t + h * w, n * d]: the t tokens skip the convolution path.
    """
    windows.check_window('ACmix', self.kernel_size, self.strides, self.dilation)
    half = nn.initializers.constant(0.5)
    alpha = self.param('alpha', half, (), self.param_dtype)
    beta = self.param('beta', half, (), self.param_dtype)
    projections = self.attention.project(x, *context)
    attended = self.attention.aggregate(projections)
    convolved = self._convolve(projections)
    if attended.ndim == 3:
      convolved = convolved.reshape(len(convolved), -1, convolved.shape[-1])
      tokens = attended.shape[1] - convolved.shape[1]
      convolved = jnp.pad(convolved, ((0, 0), (tokens, 0), (0, 0)))
    return alpha.astype(attended.dtype) * attended + (
      beta.astype(convolved.dtype) * convolved
    )

  def _convolve(self, projections):
    q, k, v, stacked = jax.tree.map(
      lambda x: x.astype(self.dtype or x.dtype),
      (projections.q, projections.k, projections.v, projections.stacked),
    )
    heads, taps = q.shape[3], self.kernel_size**2
    count = heads + k.shape[3] + v.shape[3]
    mixing = self.param(
      'mixing', self.mixing_init, (count, taps), self.param_dtype
    )
    kernel = self.param('shifts', self._shifts, v.shape[3] * v.shape[4])
    bias = None
    if self.mixing_bias:
      init = layers.torch_bias(count)
      bias = self.param('mixing_bias', init, (taps,), self.param_dtype)
    return shift_convolution.shift_convolution(
      [q, k, v] if stacked is None else [stacked],
      mixing,
      kernel,
      bias,
      valid=projections.valid,
      strides=self.strides,
      dilation=self.dilation,
      implementation=self.implementation,
    )

  def _shifts(self, key, features):
    del key
    kernel = shift_convolution.shift_kernel(self.kernel_size, features)
    return kernel.astype(self.param_dtype)


def with_mix(mix: str, layer: attention.Attention, **options: Any) -> nn.Module:
  """An attention alone ('attention') or with the convolution path ('acmix').

  Args:
    mix: which of the two.
    layer: the attention, made with `parent=None`.
    **options: of `Mix`.

  Raises:
    ValueError: `mix` is neither.
  """
  checks.check_choice('ACmix', 'mix', mix, ('attention', 'acmix'))
  return layer if mix == 'attention' else Mix(layer, parent=None, **options)


class ACmix(nn.Module):
  """The ResNet operator: a drop-in for `nn.Conv(features, (3, 3))`.

    y = acmix_jax.ACmix(64)(x)  # [b, h, w, c] -> [b, h, w, 64]

  Source: LeapLabTHU/ACmix ResNet/test_bottleneck.py. Differs: NHWC; any float
  dtype, odd maps at stride 2, dilation and any odd kernel_conv work.

  Attributes:
    features: output channels, a multiple of num_heads.
    num_heads: heads of the attention and groups of maps of the convolution.
    kernel_att: odd side of the attention window; maps must have sides larger
      than dilation * (kernel_att - 1) / 2.
    kernel_conv: odd side of the shift convolution.
    strides: pixels between outputs: [b, ceil(h/s), ceil(w/s), features].
    dilation: of the attention window and of the convolution.
    kernel_init: of the projections and the mixing. Default: PyTorch's.
    dtype: of the computation; default that of the input and parameters.
    param_dtype: of the parameters.
    attention_implementation: of `ops.local_attention`.
    convolution_implementation: of `ops.shift_convolution`.

  Raises:
    ValueError: at trace time: features not divisible by num_heads, even
      kernels, strides < 1, a map of another rank or too small to reflect.
  """

  features: int
  num_heads: int = 4
  kernel_att: int = 7
  kernel_conv: int = 3
  strides: int = 1
  dilation: int = 1
  kernel_init: nn.initializers.Initializer = layers.TORCH_KERNEL
  dtype: jnp.dtype | None = None
  param_dtype: jnp.dtype = jnp.float32
  attention_implementation: str = 'auto'
  convolution_implementation: str = 'auto'

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps x [b, h, w, c] to [b, ceil(h/s), ceil(w/s), features]."""
    mix = Mix(
      local_attention.LocalAttention(
        self.features,
        self.num_heads,
        self.kernel_att,
        self.strides,
        self.dilation,
        self.attention_implementation,
        self.kernel_init,
        self.dtype,
        self.param_dtype,
        parent=None,
      ),
      kernel_size=self.kernel_conv,
      strides=self.strides,
      dilation=self.dilation,
      mixing_init=self.kernel_init,
      implementation=self.convolution_implementation,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
    )
    nn.share_scope(self, mix)
    return mix(x)
