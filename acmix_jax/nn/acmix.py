"""ACmix: attention and convolution from the same projections.

Paper: Pan et al., On the Integration of Self-Attention and Convolution, CVPR
2022, section 4: out = alpha * attention(q, k, v) + beta * convolution(q, k, v).
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from acmix_jax import ops
from acmix_jax.nn import attention, common, local_attention


class Mix(nn.Module):
  """Adds the convolution path to any attention.

  The maps of q, k and v are mixed into kernel_size**2 maps by one small fully
  connected layer shared by the d channels, and summed by a grouped convolution
  that starts as shifts. Output channel c of the convolution is output c % n of
  group c // n, while heads are contiguous in the attention: the two are added
  as they are, as in the source.

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
  mixing_init: nn.initializers.Initializer = common.TORCH_KERNEL
  implementation: str = 'folded'
  dtype: jnp.dtype | None = None
  param_dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, *context: Any) -> jax.Array:
    """Maps x [b, h, w, c] to [b, ceil(h/s), ceil(w/s), n * d]."""
    ops.windows.check_window(
      'ACmix', self.kernel_size, self.strides, self.dilation
    )
    half = nn.initializers.constant(0.5)
    alpha = self.param('alpha', half, (), self.param_dtype)
    beta = self.param('beta', half, (), self.param_dtype)
    projections = self.attention.project(x, *context)
    attended = self.attention.aggregate(projections)
    convolved = self._convolve(projections)
    return alpha.astype(attended.dtype) * attended + (
      beta.astype(convolved.dtype) * convolved
    )

  def _convolve(self, projections):
    q, k, v = projections.q, projections.k, projections.v
    maps = jnp.concatenate([q, k, v], axis=3)
    maps = maps.astype(self.dtype or maps.dtype)
    taps = self.kernel_size**2
    mixing = self.param(
      'mixing', self.mixing_init, (maps.shape[3], taps), self.param_dtype
    )
    kernel = self.param('shifts', self._shifts, v.shape[3] * v.shape[4])
    bias = None
    if self.mixing_bias:
      bias_init = common.torch_bias(maps.shape[3])
      bias = self.param('mixing_bias', bias_init, (taps,), self.param_dtype)
    return ops.shift_convolution(
      maps,
      mixing,
      kernel,
      bias,
      strides=self.strides,
      dilation=self.dilation,
      implementation=self.implementation,
    )

  def _shifts(self, key, features):
    del key
    kernel = ops.shift_kernel(self.kernel_size, features)
    return kernel.astype(self.param_dtype)


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
  kernel_init: nn.initializers.Initializer = common.TORCH_KERNEL
  dtype: jnp.dtype | None = None
  param_dtype: jnp.dtype = jnp.float32
  attention_implementation: str = 'tiles'
  convolution_implementation: str = 'folded'

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
