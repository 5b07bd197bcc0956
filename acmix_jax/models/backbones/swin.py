"""Swin-Tiny/Small with window attention or ACmix.

Source: microsoft/Swin-Transformer models/swin_transformer.py and LeapLabTHU/
ACmix Swin-Transformer/models/swin_transformer_acmix.py. Here images may have
any size. As in Swin's detectors, zeros are added right and below for whole
patches and whole groups of four to merge; windows: see nn/window_attention.py.
"""

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from acmix_jax.models.backbones import backbone
from acmix_jax.nn import (
  acmix,
  checks,
  layers,
  transformer,
  window_attention,
)


class PatchMerging(nn.Module):
  """Halves a map: each four pixels are normalised and mapped as one.

  Attributes:
    features: Output channels.
    dtype: Computation dtype.
    param_dtype: Parameter dtype.
  """

  features: int
  dtype: DTypeLike | None = None
  param_dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, 'b h w c']) -> Float[Array, 'b ho wo f']:
    """Halves a map; sides are rounded up."""
    dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    x = _whole(x, 2)
    b, h, w, c = x.shape
    x = x.reshape(b, h // 2, 2, w // 2, 2, c)
    # Official order of the four: down, then right.
    x = x.transpose(0, 1, 3, 4, 2, 5).reshape(b, h // 2, w // 2, 4 * c)
    x = layers.LayerNorm(1e-5, **dtypes, name='norm')(x)
    dense = transformer.dense(
      self.features, use_bias=False, **dtypes, name='dense'
    )
    return dense(x)


class Swin(backbone.Backbone):
  """A pyramid of transformers with shifted windows.

  Attributes:
    patch_size: Side of the first stage's patches; later stages halve the map.
    width: Channels of the first stage; each later one has twice as many.
    num_heads: Heads in each stage.
    window_size: Side of a window.
    mlp_ratio: Hidden features of the MLPs / channels.
    kernel_conv: Side of ACmix's shift convolution.
    drop_path: Probability that an image skips a branch of the last block; it
      grows from 0 at the first block in equal steps.
    dense: Whether it is the variant of dense prediction: each stage's output
      has a norm, maps of one window are shifted, too, and padding is attended
      to.
    convolution_implementation: Implementation of `ops.shift_convolution`.
  """

  patch_size: int = 4
  width: int = 96
  num_heads: tuple[int, ...] = (3, 6, 12, 24)
  window_size: int = 7
  mlp_ratio: float = 4.0
  kernel_conv: int = 3
  drop_path: float = 0.0
  dense: bool = False
  convolution_implementation: str = 'auto'

  @property
  def strides(self) -> dict[str, int]:
    """Pixels of the image between pixels of each stage."""
    return self._by_stage(
      self.patch_size * 2**i for i in range(len(self.stage_sizes))
    )

  @property
  def channels(self) -> dict[str, int]:
    """Channels of each stage."""
    return self._by_stage(
      self.width * 2**i for i in range(len(self.stage_sizes))
    )

  def setup(self):
    self._check_fields(
      *('patch_size', 'width', 'num_heads', 'window_size'),
      num_heads=self.num_heads,
    )
    dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    rates = transformer.drop_path_rates(self.drop_path, self.stage_sizes)

    def make_block(stage, i, width):
      name, shifted = f'stage{stage + 1}_{i}', i % 2 == 1
      return transformer.Block(
        self._make_operator(name, stage, width, shifted=shifted, **dtypes),
        self.mlp_ratio,
        rates[stage][i],
        **dtypes,
        name=name,
      )

    self.stage1_embed = transformer.PatchEmbed(
      self.width, self.patch_size, **dtypes
    )
    _, *later = self.channels.items()
    self.merges = [
      PatchMerging(width, **dtypes, name=f'{name}_merge')
      for name, width in later
    ]
    if self.dense:
      self.norms = [
        layers.LayerNorm(1e-5, **dtypes, name=f'{name}_norm')
        for name in self.channels
      ]
    self.blocks = [
      [make_block(stage, i, width) for i in range(size)]
      for stage, (size, width) in enumerate(
        zip(self.stage_sizes, self.channels.values(), strict=True)
      )
    ]

  def __call__(
    self, images: Float[Array | np.ndarray, 'b h w 3'], *, train: bool = False
  ) -> backbone.Stages:
    """Maps normalised images to stages, whose sides are rounded up."""
    checks.check_map('Swin', images)
    x = self.stage1_embed(_whole(images.astype(self.dtype), self.patch_size))
    stages = {}
    for stage, name in enumerate(self.channels, start=1):
      if stage > 1:
        x = self.merges[stage - 2](x)
      x = self._apply_blocks(stage, x, train=self._trains(stage, train))
      stages[name] = x = self._output(stage, x)
    if self.dense:
      for norm, name in zip(self.norms, stages, strict=True):
        stages[name] = norm(stages[name])
    return stages

  def _make_operator(self, block, stage, width, *, shifted, **dtypes):
    attention = window_attention.WindowAttention(
      width,
      self.num_heads[stage],
      self.window_size,
      attend_padding=self.dense,
      parent=None,
      **dtypes,
    )
    layer = acmix.make_operator(
      self.operator_of(block),
      attention,
      kernel_size=self.kernel_conv,
      use_fc_bias=True,
      implementation=self.convolution_implementation,
      **dtypes,
    )
    return window_attention.ShiftedWindows(
      layer,
      self.window_size,
      shifted,
      shift_small_maps=self.dense,
      parent=None,
    )


def _whole(x, size: int):
  """Adds zeros right and below until the map is made of whole patches."""
  _, h, w, _ = x.shape
  return jnp.pad(x, ((0, 0), (0, -h % size), (0, -w % size), (0, 0)))
