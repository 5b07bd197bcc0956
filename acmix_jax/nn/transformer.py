"""What the transformers share: blocks, patches, and their start values."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from acmix_jax.nn import layers

# PyTorch cuts this normal distribution at 2, which is a hundred of its standard
# deviations: it is not truncated.
NORMAL = nn.initializers.normal(0.02)

# The linear layer of transformers.
dense = functools.partial(
  layers.Dense, kernel_init=NORMAL, bias_init=nn.initializers.zeros
)


def gelu(x: Float[Array, '*b c']) -> Float[Array, '*b c']:
  """The input times the normal distribution function, as in PyTorch.

  In single precision and by erf: jax.nn.gelu, by erfc in the precision of x,
  takes twice as long on CPU, and its gradient in bfloat16 reads more on TPU.
  """
  single = x.astype(jnp.float32)
  single = 0.5 * single * (1 + jax.lax.erf(single * np.float32(0.5**0.5)))
  return single.astype(x.dtype)


class MLP(nn.Module):
  """fc2(gelu(fc1(x))).

  Attributes:
    hidden: Hidden features.
    dtype: Computation dtype.
    param_dtype: Parameter dtype.
  """

  hidden: int
  dtype: DTypeLike | None = None
  param_dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, '*b c']) -> Float[Array, '*b c']:
    """Applies the layers to each position."""
    dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    y = gelu(dense(self.hidden, **dtypes, name='fc1')(x))
    return dense(x.shape[-1], **dtypes, name='fc2')(y)


class Block(nn.Module):
  """x + operator(norm1(x)), then x + mlp(norm2(x)).

  Attributes:
    operator: Attention or its ACmix; make it with `parent=None`.
    mlp_ratio: Hidden features of the MLP / channels.
    drop_path: Probability that a training image skips a branch, drawn for each
      of the two.
    epsilon: Summand of the norms' variances.
    dtype: Computation dtype.
    param_dtype: Parameter dtype.
  """

  operator: nn.Module
  mlp_ratio: float = 4.0
  drop_path: float = 0.0
  epsilon: float = 1e-5
  dtype: DTypeLike | None = None
  param_dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, 'b *pixels c'], *, train: bool, **context: Any
  ) -> Float[Array, 'b *pixels c']:
    """Applies both branches; the context is the operator's."""
    dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    norm = functools.partial(layers.LayerNorm, self.epsilon, **dtypes)
    y = self.operator(norm(name='norm1')(x), **context)
    x = x + self._drop(y, train)
    hidden = int(x.shape[-1] * self.mlp_ratio)
    if hidden < 1:
      raise ValueError(
        f'Block: mlp_ratio={self.mlp_ratio} of {x.shape[-1]} channels leaves '
        'no hidden feature.'
      )
    mlp = MLP(hidden, **dtypes, name='mlp')
    return x + self._drop(mlp(norm(name='norm2')(x)), train)

  def _drop(self, x, train):
    axes = tuple(range(1, x.ndim))
    drop = nn.Dropout(self.drop_path, broadcast_dims=axes)
    return drop(x, deterministic=not train)


class PatchConv(nn.Module):
  """A convolution of patches that touch and do not overlap: one product.

  Starts as PyTorch's convolution. Pixels that do not fill a patch are dropped.

  Attributes:
    features: Output channels.
    size: Side of a patch.
    dtype: Computation dtype.
    param_dtype: Parameter dtype.
  """

  features: int
  size: int
  dtype: DTypeLike | None = None
  param_dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, 'b h w c']) -> Float[Array, 'b ho wo f']:
    """One output for each patch: ho = h // size, wo = w // size."""
    b, h, w, c = x.shape
    size = self.size
    if min(h, w) < size:
      raise ValueError(
        f'PatchConv: a {h}x{w} map has no patch of {size}x{size}; the smallest '
        f'side that works is {size}. Use larger images or smaller patches.'
      )
    shape = (size, size, c, self.features)
    kernel = self.param('kernel', layers.TORCH_KERNEL, shape, self.param_dtype)
    bias_init = layers.torch_bias(size * size * c)
    bias = self.param('bias', bias_init, self.features, self.param_dtype)
    x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
    rows, columns = h // size, w // size
    x = x[:, : rows * size, : columns * size]
    x = x.reshape(b, rows, size, columns, size, c).swapaxes(2, 3)
    x = x.reshape(b, rows, columns, -1)
    return x @ kernel.reshape(-1, self.features) + bias[None, None, None]


class PatchEmbed(nn.Module):
  """Patches as normalised features: a `PatchConv` and a norm.

  Attributes:
    features: Output channels.
    size: Side of a patch.
    dtype: Computation dtype.
    param_dtype: Parameter dtype.
  """

  features: int
  size: int
  dtype: DTypeLike | None = None
  param_dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, 'b h w c']) -> Float[Array, 'b ho wo f']:
    """One output for each patch: ho = h // size, wo = w // size."""
    dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    x = PatchConv(self.features, self.size, **dtypes, name='conv')(x)
    return layers.LayerNorm(1e-5, **dtypes, name='norm')(x)


def drop_path_rates(
  rate: float, stage_sizes: tuple[int, ...]
) -> list[list[float]]:
  """Rates of the blocks of each stage, from 0 to `rate` in equal steps.

  Raises:
    ValueError: The rate is no probability below 1.
  """
  if not 0 <= rate < 1:
    raise ValueError(f'drop_path={rate}; 0 <= drop_path < 1 is needed.')
  rates = iter(np.linspace(0, rate, sum(stage_sizes)).tolist())
  return [[next(rates) for _ in range(size)] for size in stage_sizes]
