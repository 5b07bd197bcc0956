"""Attention over the window around each pixel: the attention of the ResNets."""

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, Float32

from acmix_jax.nn import attention, checks, layers
from acmix_jax.ops import local_acmix, local_attention


class LocalAttention(attention.Attention):
  """Stand-alone self-attention with a learned linear position term.

  Source: LeapLabTHU/ACmix ResNet/test_bottleneck.py (`conv1`, `conv2`, `conv3`
  are query, key, value; `conv_p` is position), the attention path of ACmix;
  without the convolution path it is the paper's self-attention ResNet.
  The bias of `position` cancels in the softmax; it is kept so that parameter
  counts and converted weights equal the source's.

  Attributes:
    features: Output channels, a multiple of num_heads.
    num_heads: Heads; head_dim = features // num_heads.
    kernel_size: Odd side of the window.
    strides: Pixels between queries; stage I runs on all pixels.
    dilation: Pixels between neighbouring keys.
    implementation: Implementation of `ops.local_attention`.
    kernel_init: Start value of the four projections. Default: PyTorch's.
    dtype: Computation dtype; None: that of the input and parameters.
    param_dtype: Parameter dtype.
  """

  features: int
  num_heads: int = 4
  kernel_size: int = 7
  strides: int = 1
  dilation: int = 1
  implementation: str = 'auto'
  kernel_init: nn.initializers.Initializer = layers.TORCH_KERNEL
  dtype: DTypeLike | None = None
  param_dtype: DTypeLike = jnp.float32

  def setup(self):
    checks.check_heads('LocalAttention', self.features, self.num_heads)
    self.query = self._projection(self.features)
    self.key = self._projection(self.features)
    self.value = self._projection(self.features)
    self.position = _Position(
      self.features // self.num_heads, self.kernel_init, self.param_dtype
    )

  def project(self, x: Float[Array, 'b h w c']) -> attention.Projections:
    """Queries, keys and values at every pixel."""
    checks.check_map('LocalAttention', x)
    heads = (*x.shape[:3], self.num_heads, -1)
    return attention.Projections(
      q=self.query(x).reshape(heads),
      k=self.key(x).reshape(heads),
      v=self.value(x).reshape(heads),
    )

  def aggregate(
    self, projections: attention.Projections
  ) -> Float[Array, 'b ho wo f']:
    """Attention over the window."""
    _, h, w, _, _ = projections.q.shape
    out = local_attention.local_attention(
      projections.q,
      projections.k,
      projections.v,
      self.position(h, w),
      kernel_size=self.kernel_size,
      strides=self.strides,
      dilation=self.dilation,
      implementation=self.implementation,
    )
    return out.reshape(*out.shape[:3], self.features)

  def sum_of_paths(
    self,
    x: Float[Array, 'b h w c'],
    convolution: attention.Convolution,
    alpha: ArrayLike,
    beta: ArrayLike,
  ) -> Float[Array, 'b ho wo f'] | None:
    """Projections and both paths as one operator.

    None if an implementation was asked for, the paths differ in strides,
    dilation or dtype, or the fully connected layer has a bias.
    """
    own = self.implementation, self.strides, self.dilation, self.dtype
    other = (
      *(convolution.implementation, convolution.strides),
      *(convolution.dilation, convolution.dtype),
    )
    if own != other or own[0] != 'auto' or convolution.use_bias:
      return None
    checks.check_map('LocalAttention', x)
    weights = [
      layer.weights(x.shape[3]) for layer in (self.query, self.key, self.value)
    ]
    x, *weights = nn.dtypes.promote_dtype(
      x, *map(jnp.stack, zip(*weights, strict=True)), dtype=self.dtype
    )
    # All is linear in the maps of the convolution: one product of weights.
    fc_kernel, depthwise_kernel, _ = convolution.make_weights(
      3 * self.num_heads, self.features
    )
    kernel = jnp.einsum('mt,yxtc->yxmc', beta * fc_kernel, depthwise_kernel)
    return local_acmix.local_acmix(
      *(x, *weights),
      self.position(*x.shape[1:3]),
      kernel.astype(x.dtype),
      jnp.asarray(alpha),
      kernel_size=self.kernel_size,
      strides=self.strides,
      dilation=self.dilation,
    )

  def _projection(self, features):
    return layers.Dense(
      features,
      kernel_init=self.kernel_init,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
    )


class _Position(nn.Module):
  """A linear encoding of pixels, each side from -1 to 1, x before y.

  Attributes:
    features: Channels of the encoding.
    kernel_init: Start value of the kernel.
    param_dtype: Parameter dtype.
  """

  features: int
  kernel_init: nn.initializers.Initializer
  param_dtype: DTypeLike

  @nn.compact
  def __call__(self, height: int, width: int) -> Float32[Array, '2 d']:
    """Change of the encoding by row and by column; the bias leaves none."""
    kernel = self.param(
      'kernel', self.kernel_init, (2, self.features), self.param_dtype
    )
    init = layers.torch_bias(2)
    self.param('bias', init, (self.features,), self.param_dtype)
    steps = [2 / max(1, side - 1) for side in (height, width)]
    return kernel[::-1].astype(jnp.float32) * jnp.array(steps)[:, None]
