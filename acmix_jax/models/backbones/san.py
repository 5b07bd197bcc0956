"""SAN-10/15/19 with patchwise attention or ACmix.

Source: hszhao/SAN model/san.py with sa_type 1 and `Bottleneck`. The paper gives
figures of SAN-ACmix but no code was published: how the maps of SAN enter the
convolution path is our reading, described in nn/patchwise_attention.py. Among
the complete readings it is the one whose cost is nearest the paper's Table 1.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from acmix_jax.nn import acmix, checks, layers, patchwise_attention, remat
from acmix_jax.ops import xla_cpu

# Of the trunk's channels for each of the attention's.
_EXPANSION = 4


class Block(nn.Module):
  """Norm, rectifier, mixing layer; the same with a linear layer; identity.

  Attributes:
    mix: the mixing layer; make it with `parent=None`.
    norm: makes the normalisation layer from a name.
    dtype: of the computation.
    param_dtype: of the parameters.
  """

  mix: nn.Module
  norm: Callable[..., nn.Module]
  dtype: jnp.dtype | None = None
  param_dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Maps [b, h, w, c] to the same shape."""
    y = nn.relu(self.norm(name='norm1')(x, train=train))
    y = self.mix(y, train)
    y = nn.relu(self.norm(name='norm2')(y, train=train))
    y = layers.Dense(
      x.shape[-1], dtype=self.dtype, param_dtype=self.param_dtype, name='dense'
    )(y)
    return x + y


class SAN(nn.Module):
  """A SAN whose blocks mix pixels by patchwise attention or ACmix.

  Each stage halves the map, so an image needs 2**stages * (kernel_size + 1) / 2
  pixels a side for the window of the last stage: 128 with the five of SAN-10.

  Attributes:
    stage_sizes: blocks of each stage; the first is part of the stem.
    mix: 'attention' or 'acmix'.
    num_classes: outputs of the classifier.
    widths: channels of the trunk in each stage, multiples of 32.
    kernel_sizes: side of the attention window in each stage.
    kernel_conv: side of ACmix's shift convolution.
    norm_groups: groups of the batch with batch statistics of their own.
    dtype: of the computation; logits are float32.
    param_dtype: of the parameters.
    remat: what is kept of a block for its gradient; see `remat.apply_blocks`.
    convolution_implementation: of `ops.shift_convolution`.
  """

  stage_sizes: tuple[int, ...]
  mix: str = 'attention'
  num_classes: int = 1000
  widths: tuple[int, ...] = (64, 256, 512, 1024, 2048)
  kernel_sizes: tuple[int, ...] = (3, 7, 7, 7, 7)
  kernel_conv: int = 3
  norm_groups: int = 1
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32
  remat: str = 'none'
  convolution_implementation: str = 'auto'

  def setup(self):
    checks.check_choice('SAN', 'remat', self.remat, remat.REMATS)
    checks.check_stages(
      'SAN',
      self.stage_sizes,
      widths=self.widths,
      kernel_sizes=self.kernel_sizes,
    )
    dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    dense = functools.partial(layers.Dense, use_bias=False, **dtypes)
    norm = functools.partial(layers.BatchNorm, self.norm_groups, **dtypes)
    self.stem_conv, self.stem_norm = dense(self.widths[0]), norm()
    for stage, size in enumerate(self.stage_sizes):
      blocks = [
        Block(self._mixing_layer(stage, **dtypes), norm, **dtypes)
        for _ in range(size)
      ]
      setattr(self, f'conv{stage}', dense(self.widths[stage]))
      setattr(self, f'stage{stage}', blocks)
      setattr(self, f'norm{stage}', norm())
    self.head = layers.Dense(self.num_classes, **dtypes)

  def features(
    self, x: jax.Array, *, train: bool = False
  ) -> dict[str, jax.Array]:
    """Maps images [b, h, w, 3] to {'stage1': [b, h/4, w/4, c], ...}.

    A pixel beyond a multiple of 2 is dropped where a map is halved. The first
    of the five stages, at h/2, is left out.
    """
    checks.check_map('SAN', x)
    x = self.stem_conv(x.astype(self.dtype))
    x = nn.relu(self.stem_norm(x, train=train))
    stages = {}
    for stage in range(len(self.stage_sizes)):
      x = xla_cpu.max_pool(x, 2)
      x = getattr(self, f'conv{stage}')(x)
      x = remat.apply_blocks(self, f'stage{stage}', x, train=train)
      x = nn.relu(getattr(self, f'norm{stage}')(x, train=train))
      if stage:
        stages[f'stage{stage}'] = x
    return stages

  def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
    """Maps normalised images [b, h, w, 3] to float32 logits [b, classes]."""
    x = self.features(x, train=train)[f'stage{len(self.stage_sizes) - 1}']
    return self.head(x.mean(axis=(1, 2))).astype(jnp.float32)

  def _mixing_layer(self, stage, **dtypes):
    attention = patchwise_attention.PatchwiseAttention(
      self.widths[stage] // _EXPANSION,
      self.kernel_sizes[stage],
      self.norm_groups,
      parent=None,
      **dtypes,
    )
    return acmix.with_mix(
      self.mix,
      attention,
      kernel_size=self.kernel_conv,
      implementation=self.convolution_implementation,
      **dtypes,
    )
