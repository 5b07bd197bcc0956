"""Patchwise attention: the attention of SAN."""

import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from acmix_jax.nn import attention, checks, layers
from acmix_jax.ops import patchwise, windows

# Channels of the values / channels of the queries and keys.
_VALUE_GROUPS = 4
# Channels of the values that share a plane of weights.
_SHARED = 8


@struct.dataclass
class PatchwiseProjections(attention.Projections):
  """Projections with what the norms of stage II need.

  Attributes:
    train: Whether the norms run as in training.
  """

  train: bool = struct.field(pytree_node=False)


class PatchwiseAttention(attention.Attention):
  """Weights for a whole window from its query and all of its keys at once.

  The query and the k*k keys pass a norm and a ReLU and are mapped to
  features // 8 hidden features, and these, after a norm and a ReLU, to k*k
  weights for each of features // 8 planes; channel c of the values has plane
  c mod (features // 8). The weights are not normalised and know no positions.

  Source: hszhao/SAN model/san.py, SAM with sa_type 1 (`conv1`, `conv2`, `conv3`
  are query, key, value; `conv_w` the rest). Here the k*k keys and weights of a
  pixel are never all in memory, and the normalisation of the shifted copies of
  the keys is computed from the keys.

  For ACmix (no code was published for SAN; the paper says that queries and
  keys have C/4 channels and that values are divided into 4 groups) the maps
  are q, k, v1..v4 of C/4 channels each, as projected, before normalisation.

  Attributes:
    features: Output channels, a multiple of 8.
    kernel_size: Odd side of the window; maps must have sides larger than
      (kernel_size - 1) / 2.
    norm_groups: Groups of the batch with batch statistics of their own.
    batch_norm: Mode of the norms, one of `layers.BATCH_NORM_MODES`.
    dtype: Computation dtype; None: that of the input and parameters.
    param_dtype: Parameter dtype.
  """

  features: int
  kernel_size: int = 7
  norm_groups: int = 1
  batch_norm: str = 'batch'
  dtype: DTypeLike | None = None
  param_dtype: DTypeLike = jnp.float32

  def setup(self):
    name = 'PatchwiseAttention'
    checks.check_heads(name, self.features, _SHARED)
    windows.check_window(name, self.kernel_size, 1, 1)
    dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    width = self.features // _VALUE_GROUPS
    self.query = layers.Dense(width, **dtypes)
    self.key = layers.Dense(width, **dtypes)
    self.value = layers.Dense(self.features, **dtypes)
    self.norm1 = layers.BatchNorm(self.norm_groups, self.batch_norm, **dtypes)
    self.norm2 = layers.BatchNorm(self.norm_groups, self.batch_norm, **dtypes)

  def project(
    self, x: Float[Array, 'b h w c'], *, train: bool
  ) -> PatchwiseProjections:
    """One map of queries, one of keys and four of values at every pixel."""
    checks.check_map('PatchwiseAttention', x)
    groups = (*x.shape[:3], -1, self.features // _VALUE_GROUPS)
    return PatchwiseProjections(
      q=self.query(x).reshape(groups),
      k=self.key(x).reshape(groups),
      v=self.value(x).reshape(groups),
      train=train,
    )

  @nn.compact
  def aggregate(
    self, projections: PatchwiseProjections
  ) -> Float[Array, 'b h w f']:
    """Sums the values of each window."""
    q, k = projections.q[:, :, :, 0], projections.k[:, :, :, 0]
    v = projections.v.reshape(*q.shape[:3], self.features)
    train = projections.train
    windows.check_reflection(
      'PatchwiseAttention', *q.shape[1:3], self.kernel_size, 1
    )
    taps, features = self.kernel_size**2, self.features // _SHARED
    kernel1, kernel2 = (
      self.param(name, layers.TORCH_KERNEL, shape, self.param_dtype)
      for name, shape in (
        ('kernel1', (q.shape[-1] * (1 + taps), features)),
        ('kernel2', (features, features * taps)),
      )
    )
    bias2 = self.param(
      'bias2',
      layers.torch_bias(features),
      (features * taps,),
      self.param_dtype,
    )
    hidden = self.norm2(self._hidden(q, k, kernel1, train), train=train)
    hidden = nn.relu(hidden).astype(v.dtype)
    kernel = kernel2.reshape(features, -1, taps)
    bias = bias2.reshape(-1, taps)
    return patchwise.patchwise_aggregation(
      v, hidden, kernel.transpose(2, 0, 1), bias.T, self.kernel_size
    )

  def _hidden(self, q, k, kernel1, train):
    """Hidden features of queries and windows of keys, normalised before."""
    width, taps = q.shape[-1], self.kernel_size**2
    moments = None
    if self.norm1.uses_batch(train):
      *of_query, count = layers.batch_moments(q, self.norm_groups)
      of_window = patchwise.window_moments(
        k, self.kernel_size, self.norm_groups
      )
      means = (
        jnp.concatenate(
          [query, keys.swapaxes(1, 2).reshape(keys.shape[0], -1)], 1
        )
        for query, keys in zip(of_query, of_window, strict=True)
      )
      moments = layers.Moments(*means, count)
    factor, offset = self.norm1.affine(width * (1 + taps), moments)

    # Official order: the query's channels, then the taps of each key channel.
    def of_keys(x):
      return x[:, width:].reshape(-1, width, taps).swapaxes(1, 2)

    of_query = patchwise.window_dense(
      q,
      factor[:, None, :width],
      offset[:, None, :width],
      kernel1[None, :width],
      kernel_size=1,
    )
    kernel = of_keys(kernel1.T).transpose(1, 2, 0)
    return of_query + patchwise.window_dense(
      k, of_keys(factor), of_keys(offset), kernel, self.kernel_size
    )
