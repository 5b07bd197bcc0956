"""Layers and initialisers that every family shares."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.nn import initializers
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, Int

from acmix_jax.nn import checks
from acmix_jax.ops import dense, resized_convolution, xla_cpu

# Rewrites for XLA on CPU of what models use beside layers.
max_pool = xla_cpu.max_pool
add_to_each = xla_cpu.add_to_each

# He et al., for layers before a ReLU, as torchvision's ResNets start.
KAIMING_FAN_OUT = initializers.variance_scaling(2.0, 'fan_out', 'normal')
# What PyTorch gives a linear or convolution kernel that nobody initialises.
TORCH_KERNEL = initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')

# What batch normalisation does in training. 'batch': normalises by the
# statistics of the batch, which the running ones follow. 'running': by the
# running statistics, which stay as they are; scale and bias learn. 'frozen':
# scale and bias stay as they are, too.
BATCH_NORM_MODES = ('batch', 'running', 'frozen')


def torch_bias(fan_in: int) -> initializers.Initializer:
  """PyTorch's bias for a layer of `fan_in` inputs: U(-1, 1) / sqrt(fan_in)."""
  bound = fan_in**-0.5

  def init(key, shape, dtype=jnp.float32):
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return init


class Dense(nn.Module):
  """A linear layer over the last axis that starts as PyTorch's does.

  Attributes:
    features: Output channels.
    use_bias: Whether there is a bias.
    kernel_init: Start value of the kernel. Default: PyTorch's.
    bias_init: Start value of the bias; None: PyTorch's.
    dtype: Computation dtype; None: that of the input and parameters.
    param_dtype: Parameter dtype.
  """

  features: int
  use_bias: bool = True
  kernel_init: initializers.Initializer = TORCH_KERNEL
  bias_init: initializers.Initializer | None = None
  dtype: DTypeLike | None = None
  param_dtype: DTypeLike = jnp.float32

  def __call__(self, x: Float[Array, '*b c']) -> Float[Array, '*b f']:
    """Applies the layer to each position."""
    weights = self.weights(x.shape[-1])
    return dense.dense(*nn.dtypes.promote_dtype(x, *weights, dtype=self.dtype))

  @nn.compact
  def weights(
    self, channels: int
  ) -> tuple[
    Float[Array | np.ndarray, 'c f'], Float[Array | np.ndarray, ' f'] | None
  ]:
    """The kernel and the bias, of inputs of so many channels."""
    shape = channels, self.features
    kernel = self.param('kernel', self.kernel_init, shape, self.param_dtype)
    bias = None
    if self.use_bias:
      init = self.bias_init or torch_bias(channels)
      bias = self.param('bias', init, (self.features,), self.param_dtype)
    return kernel, bias


class Conv(nn.Module):
  """A convolution that keeps the size but for its strides.

  Attributes:
    features: Output channels.
    kernel_size: Odd side of the kernel.
    strides: Pixels between outputs.
    use_bias: Whether there is a bias.
    kernel_init: Start value of the kernel. Default: PyTorch's.
    bias_init: Start value of the bias. Default: 0.
    dtype: Computation dtype; None: that of the input and parameters.
    param_dtype: Parameter dtype.
  """

  features: int
  kernel_size: int
  strides: int = 1
  use_bias: bool = False
  kernel_init: initializers.Initializer = TORCH_KERNEL
  bias_init: initializers.Initializer = initializers.zeros
  dtype: DTypeLike | None = None
  param_dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, *maps: Float[Array, 'b _h _w _c']
  ) -> Float[Array, 'b ho wo f']:
    """Convolves a map with zeros around it.

    Args:
      *maps: Several are brought to the size of the first by bilinear
        interpolation, and concatenated.

    Raises:
      ValueError: Several maps at strides.
    """
    if len(maps) > 1 and self.strides > 1:
      raise ValueError(
        f'Conv: strides={self.strides} for {len(maps)} maps; several have 1.'
      )
    channels = sum(x.shape[-1] for x in maps)
    shape = (self.kernel_size, self.kernel_size, channels, self.features)
    kernel = self.param('kernel', self.kernel_init, shape, self.param_dtype)
    bias = None
    if self.use_bias:
      bias = self.param(
        'bias', self.bias_init, (self.features,), self.param_dtype
      )
    kernel, bias, *maps = nn.dtypes.promote_dtype(
      kernel, bias, *maps, dtype=self.dtype
    )
    if len(maps) == 1:
      y = xla_cpu.convolution(*maps, kernel, self.strides)
    else:
      y = resized_convolution.resized_convolution(maps, kernel)
    return y if bias is None else y + bias[None, None, None]


class Moments(NamedTuple):
  """Statistics of each group of a batch.

  Attributes:
    mean: Means of x.
    square: Means of the square of x.
    count: Values of a channel that each is the mean of; an array where that
      depends on the data.
  """

  mean: Float32[Array, 'g c']
  square: Float32[Array, 'g c']
  count: int | Int[Array, '']


class LayerNorm(nn.Module):
  """`nn.LayerNorm` that says in which dtype it computes.

  flax leaves the meeting of a bfloat16 input and its float32 mean to the
  promotion of dtypes, which jax_numpy_dtype_promotion='strict' forbids. The
  numbers are the same.

  Attributes:
    epsilon: Summand of the variance.
    dtype: Output dtype; None: that of the input and parameters.
    param_dtype: Dtype of scale and bias.
  """

  epsilon: float = 1e-6
  dtype: DTypeLike | None = None
  param_dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, '*b c']) -> Float[Array, '*b c']:
    """Normalises over the last axis."""
    dtype = self.dtype
    if dtype is not None and jnp.dtype(dtype).itemsize < 4:
      dtype = jnp.float32
    norm = nn.LayerNorm(self.epsilon, dtype=dtype, param_dtype=self.param_dtype)
    nn.share_scope(self, norm)
    if dtype is None:
      return norm(x)
    return norm(x.astype(dtype)).astype(self.dtype)


class BatchNorm(nn.Module):
  """Batch normalisation with statistics over all of the batch, or groups of it.

  Under jit the batch is global, so one group is PyTorch's SyncBatchNorm. The
  papers trained with one group per GPU (8 of 32 images): `num_groups=8` gives
  that on any number of devices. Statistics are float32. As in PyTorch, n values
  are normalised by their variance, and the running variance follows n / (n - 1)
  times that.

  Attributes:
    num_groups: Groups with statistics of their own; divides the batch.
    mode: What is trained, see `BATCH_NORM_MODES`.
    momentum: Decay of the running statistics (1 - PyTorch's momentum).
    epsilon: Summand of the variance.
    dtype: Output dtype; None: that of the input.
    param_dtype: Dtype of scale and bias.
  """

  num_groups: int = 1
  mode: str = 'batch'
  momentum: float = 0.9
  epsilon: float = 1e-5
  dtype: DTypeLike | None = None
  param_dtype: DTypeLike = jnp.float32

  def __call__(
    self, x: Float[Array, 'b *pixels c'], *, train: bool
  ) -> Float[Array, 'b *pixels c']:
    """Normalises over all axes but the last."""
    moments = None
    if self.uses_batch(train):
      moments = batch_moments(x, self.num_groups)
    factor, offset = self.affine(x.shape[-1], moments)
    groups = factor.shape[0]
    per_group = (groups, *[1] * (x.ndim - 1), x.shape[-1])
    dtype = jnp.float32 if x.dtype.itemsize < 4 else x.dtype
    factor, offset = (
      a.reshape(per_group).astype(dtype) for a in (factor, offset)
    )
    y = x.reshape(groups, -1, *x.shape[1:]).astype(dtype) * factor + offset
    return y.reshape(x.shape).astype(self.dtype or x.dtype)

  def uses_batch(self, train: bool) -> bool:
    """Whether the statistics are those of the batch, not the running ones."""
    return train and self.mode == 'batch'

  @nn.compact
  def affine(
    self, features: int, moments: Moments | None
  ) -> tuple[Float32[Array, 'g c'], Float32[Array, 'g c']]:
    """The normalisation as y = x * factor + offset.

    Args:
      features: Channels c.
      moments: Statistics of the batch, which the running ones then follow;
        None: use the running statistics.

    Returns:
      The factor and the offset.

    Raises:
      ValueError: The mode is unknown, or a group has one value a channel.
    """
    checks.check_choice('BatchNorm', 'mode', self.mode, BATCH_NORM_MODES)
    mean = self.variable(
      'batch_stats', 'mean', jnp.zeros, features, jnp.float32
    )
    var = self.variable('batch_stats', 'var', jnp.ones, features, jnp.float32)
    scale = self.param(
      'scale', nn.initializers.ones, features, self.param_dtype
    )
    bias = self.param('bias', nn.initializers.zeros, features, self.param_dtype)
    if self.mode == 'frozen':
      scale, bias = jax.lax.stop_gradient((scale, bias))
    if moments is None:
      group_mean, group_var = mean.value[None], var.value[None]
    else:
      group_mean, square, count = moments
      if isinstance(count, int) and count < 2:
        raise ValueError(
          'BatchNorm: one value a channel has no variance to train with; give '
          'each of the groups two images or more, or larger ones.'
        )
      group_var = jnp.maximum(square - jnp.square(group_mean), 0)
      if not self.is_initializing():
        keep = self.momentum
        unbiased = group_var.mean(axis=0) * (count / jnp.maximum(count - 1, 1))
        mean.value = keep * mean.value + (1 - keep) * group_mean.mean(axis=0)
        var.value = keep * var.value + (1 - keep) * unbiased
    factor = jax.lax.rsqrt(group_var + self.epsilon)
    factor = factor * scale.astype(jnp.float32)[None]
    return factor, bias.astype(jnp.float32)[None] - group_mean * factor


class ConvNormRelu(nn.Module):
  """relu(norm(conv(x))): what heads are made of.

  Attributes:
    features: Output channels.
    kernel_size: Odd side of the kernel.
    dtype: Computation dtype; None: that of the input and parameters.
    param_dtype: Parameter dtype.
  """

  features: int
  kernel_size: int
  dtype: DTypeLike | None = None
  param_dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, *maps: Float[Array, 'b _h _w _c'], train: bool
  ) -> Float[Array, 'b h w f']:
    """Applies the layers to a map, or to several as `Conv` does."""
    dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    conv = Conv(
      self.features,
      self.kernel_size,
      kernel_init=KAIMING_FAN_OUT,
      **dtypes,
      name='conv',
    )
    return nn.relu(BatchNorm(**dtypes, name='norm')(conv(*maps), train=train))


def frozen_norms(mode: str) -> list[str]:
  """Patterns of the parameters that norms of this mode do not train."""
  return [r'.*norm\d*/(scale|bias)'] if mode == 'frozen' else []


def batch_moments(
  x: Float[Array, 'b *pixels c'], num_groups: int = 1
) -> Moments:
  """Means of x and of its square over all axes but the last.

  E[x^2] - E[x]^2 reads the input once where E[(x - E[x])^2] reads it twice.

  Raises:
    ValueError: The groups do not divide the batch.
  """
  if x.shape[0] % num_groups:
    raise ValueError(
      f'BatchNorm: a batch of {x.shape[0]} does not divide into '
      f'num_groups={num_groups}.'
    )
  x = x.astype(jnp.float32).reshape(num_groups, -1, x.shape[-1])
  return Moments(x.mean(axis=1), jnp.square(x).mean(axis=1), x.shape[1])
