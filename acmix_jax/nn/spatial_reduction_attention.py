"""Attention of every pixel to a coarser map: the attention of PVT."""

import math

import jax.numpy as jnp
from flax import struct
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from acmix_jax.nn import attention, checks, layers, transformer
from acmix_jax.ops import attention as ops


@struct.dataclass
class SequenceProjections(attention.Projections):
  """Projections of a sequence whose first tokens have no place in the map.

  Attributes:
    tokens: Queries, keys and values of these tokens.
  """

  tokens: tuple[
    Float[Array, 'b tokens n d'],
    Float[Array, 'b tokens n d'],
    Float[Array, 'b tokens n d'],
  ]


class SpatialReductionAttention(attention.Attention):
  """Global attention whose keys and values are those of merged patches.

  Works on sequences: tokens that have no place in the map, whose keys and
  values are not reduced, then the pixels of the map in rows.

  Source: whai362/PVT classification/pvt.py, `Attention` (`sr` is reduce, `norm`
  reduce_norm, `kv` key_value).

  For ACmix (no code was published for PVT) the convolution path takes the
  queries at every pixel and the keys and values of the reduced map, repeated
  to the queries' grid. As in the official Swin-ACmix, it takes q, k and v
  unscaled, and is added after the output projection of the attention, which
  alpha then weights. The class token skips the convolution path: it has no
  neighbours; a classifier that reads the token alone hence never sees the
  convolution of its last block. Of the complete readings this one is nearest
  the paper's figures.

  Attributes:
    features: Output channels, a multiple of num_heads.
    num_heads: Heads; head_dim = features // num_heads.
    reduction: Side of the patches that become one key and value; 1: none.
    dtype: Computation dtype; None: that of the input and parameters.
    param_dtype: Parameter dtype.
  """

  features: int
  num_heads: int
  reduction: int = 1
  dtype: DTypeLike | None = None
  param_dtype: DTypeLike = jnp.float32

  def setup(self):
    name = 'SpatialReductionAttention'
    checks.check_heads(name, self.features, self.num_heads)
    if self.reduction < 1:
      raise ValueError(f'{name}: reduction={self.reduction}; >= 1 is needed.')
    dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    self.query = transformer.dense(self.features, **dtypes)
    self.key_value = transformer.dense(2 * self.features, **dtypes)
    self.out = transformer.dense(self.features, **dtypes)
    if self.reduction > 1:
      self.reduce = transformer.PatchConv(
        self.features, self.reduction, **dtypes
      )
      self.reduce_norm = layers.LayerNorm(1e-5, **dtypes)

  def project(
    self, x: Float[Array, 'b l c'], *, grid: tuple[int, int]
  ) -> SequenceProjections:
    """Queries on the grid, keys and values on the reduced one.

    Args:
      x: Sequence, of l - h * w tokens and h * w pixels.
      grid: Rows h and columns w of the map.
    """
    tokens = x.shape[1] - math.prod(grid)
    coarse = tuple(size // self.reduction for size in grid)
    keys = x
    if self.reduction > 1:
      pixels = x[:, tokens:].reshape(-1, *grid, x.shape[2])
      reduced = self.reduce_norm(self.reduce(pixels))
      reduced = reduced.reshape(x.shape[0], -1, self.features)
      keys = jnp.concatenate([x[:, :tokens], reduced], axis=1)
    head_dim = self.features // self.num_heads
    heads = (x.shape[0], -1, self.num_heads, head_dim)
    sequences = [
      (self.query(x), grid),
      *[(y, coarse) for y in jnp.split(self.key_value(keys), 2, axis=-1)],
    ]
    sequences = [(y.reshape(heads), size) for y, size in sequences]
    q, k, v = (
      y[:, tokens:].reshape(x.shape[0], *size, *heads[2:])
      for y, size in sequences
    )
    of_tokens = tuple(y[:, :tokens] for y, _ in sequences)
    return SequenceProjections(q, k, v, of_tokens)

  def aggregate(
    self, projections: SequenceProjections
  ) -> Float[Array, 'b l f']:
    """Attention of tokens and pixels."""
    maps = (projections.q, projections.k, projections.v)
    q, k, v = (
      jnp.concatenate([tokens, y.reshape(y.shape[0], -1, *y.shape[3:])], axis=1)
      for tokens, y in zip(projections.tokens, maps, strict=True)
    )
    out = ops.attention(q, k, v)
    return self.out(out.reshape(*out.shape[:2], self.features))
