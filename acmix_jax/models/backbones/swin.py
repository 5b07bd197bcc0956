"""Swin-Tiny/Small with window attention or ACmix.

Source: microsoft/Swin-Transformer models/swin_transformer.py and LeapLabTHU/
ACmix Swin-Transformer/models/swin_transformer_acmix.py. Differs: images of any
size. As in Swin's detectors, zeros are added right and below for whole patches
and whole groups of four to merge; windows: see nn/window_attention.py.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from acmix_jax.nn import (
  acmix,
  checks,
  remat,
  transformer,
  window_attention,
)


class PatchMerging(nn.Module):
  """Halves a map: each four pixels are normalised and mapped as one.

  Attributes:
    features: output channels.
    dtype: of the computation.
    param_dtype: of the parameters.
  """

  features: int
  dtype: jnp.dtype | None = None
  param_dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [b, h, w, c] to [b, ceil(h/2), ceil(w/2), features]."""
    dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    x = _whole(x, 2)
    b, h, w, c = x.shape
    x = x.reshape(b, h // 2, 2, w // 2, 2, c)
    # Official order of the four: down, then right.
    x = x.transpose(0, 1, 3, 4, 2, 5).reshape(b, h // 2, w // 2, 4 * c)
    x = nn.LayerNorm(1e-5, **dtypes, name='norm')(x)
    dense = transformer.Linear(
      self.features, use_bias=False, **dtypes, name='dense'
    )
    return dense(x)


class Swin(nn.Module):
  """A pyramid of transformers with shifted windows.

  Attributes:
    stage_sizes: blocks of each stage.
    mix: 'attention' or 'acmix'.
    num_classes: outputs of the classifier.
    patch_size: side of the first stage's patches; later stages halve the map.
    width: channels of the first stage; each later one has twice as many.
    num_heads: heads in each stage.
    window_size: side of a window.
    mlp_ratio: hidden features of the perceptrons for each channel.
    kernel_conv: side of ACmix's shift convolution.
    drop_path: of the last block; the first has 0.
    dtype: of the computation; logits are float32.
    param_dtype: of the parameters.
    remat: what is kept of a block for its gradient; see `remat.apply_blocks`.
    convolution_implementation: of `ops.shift_convolution`.
  """

  stage_sizes: tuple[int, ...]
  mix: str = 'attention'
  num_classes: int = 1000
  patch_size: int = 4
  width: int = 96
  num_heads: tuple[int, ...] = (3, 6, 12, 24)
  window_size: int = 7
  mlp_ratio: float = 4.0
  kernel_conv: int = 3
  drop_path: float = 0.0
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32
  remat: str = 'none'
  convolution_implementation: str = 'auto'

  def setup(self):
    checks.check_choice('Swin', 'remat', self.remat, remat.REMATS)
    checks.check_stages('Swin', self.stage_sizes, num_heads=self.num_heads)
    dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    rates = iter(transformer.drop_path_rates(self.drop_path, self.stage_sizes))
    self.embed = transformer.PatchEmbed(self.width, self.patch_size, **dtypes)
    for stage, size in enumerate(self.stage_sizes):
      blocks = [
        transformer.Block(
          self._mixing_layer(stage, shifted=i % 2 == 1, **dtypes),
          self.mlp_ratio,
          float(next(rates)),
          **dtypes,
        )
        for i in range(size)
      ]
      if stage:
        merge = PatchMerging(self.width * 2**stage, **dtypes)
        setattr(self, f'merge{stage + 1}', merge)
      setattr(self, f'stage{stage + 1}', blocks)
    self.norm = nn.LayerNorm(1e-5, **dtypes)
    self.head = transformer.Linear(self.num_classes, **dtypes)

  def features(
    self, x: jax.Array, *, train: bool = False
  ) -> dict[str, jax.Array]:
    """Maps images [b, h, w, 3] to {'stage1': [b, ceil(h/4), ...], ...}.

    Sides are rounded up at every stage. Before the last norm.
    """
    checks.check_map('Swin', x)
    x = self.embed(_whole(x.astype(self.dtype), self.patch_size))
    stages = {}
    for stage in range(1, len(self.stage_sizes) + 1):
      if stage > 1:
        x = getattr(self, f'merge{stage}')(x)
      x = remat.apply_blocks(self, f'stage{stage}', x, train=train)
      stages[f'stage{stage}'] = x
    return stages

  def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
    """Maps normalised images [b, h, w, 3] to float32 logits [b, classes]."""
    x = self.features(x, train=train)[f'stage{len(self.stage_sizes)}']
    return self.head(self.norm(x).mean(axis=(1, 2))).astype(jnp.float32)

  def _mixing_layer(self, stage, *, shifted, **dtypes):
    attention = window_attention.WindowAttention(
      self.width * 2**stage,
      self.num_heads[stage],
      self.window_size,
      parent=None,
      **dtypes,
    )
    layer = acmix.with_mix(
      self.mix,
      attention,
      kernel_size=self.kernel_conv,
      mixing_bias=True,
      implementation=self.convolution_implementation,
      **dtypes,
    )
    return window_attention.ShiftedWindows(
      layer, self.window_size, shifted, parent=None
    )


def _whole(x: jax.Array, size: int) -> jax.Array:
  """Adds zeros right and below until the map is made of whole patches."""
  _, h, w, _ = x.shape
  return jnp.pad(x, ((0, 0), (0, -h % size), (0, -w % size), (0, 0)))
