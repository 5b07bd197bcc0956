"""PVT-Tiny/Small with spatial-reduction attention or ACmix.

Source: whai362/PVT classification/pvt.py. Differs: position embeddings are
resized whenever the map is not theirs (the source compares the number of pixels
alone, with that of the first stage). The paper gives figures of PVT-ACmix but
no code was published: our reading is described in
nn/spatial_reduction_attention.py.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from acmix_jax.nn import (
  acmix,
  checks,
  remat,
  spatial_reduction_attention,
  transformer,
)
from acmix_jax.ops import xla_cpu

_EPSILON = 1e-6


class PVT(nn.Module):
  """A pyramid of transformers with a class token in the last stage.

  Attributes:
    stage_sizes: blocks of each stage.
    mix: 'attention' or 'acmix'.
    num_classes: outputs of the classifier.
    image_size: side of the images whose grid the position embeddings have; at
      other sizes they are interpolated.
    patch_size: side of the first stage's patches; later ones have 2.
    widths: channels in each stage.
    num_heads: heads in each stage.
    mlp_ratios: hidden features of the perceptrons for each channel.
    reductions: side of the patches that become one key, in each stage.
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
  image_size: int = 224
  patch_size: int = 4
  widths: tuple[int, ...] = (64, 128, 320, 512)
  num_heads: tuple[int, ...] = (1, 2, 5, 8)
  mlp_ratios: tuple[float, ...] = (8, 8, 4, 4)
  reductions: tuple[int, ...] = (8, 4, 2, 1)
  kernel_conv: int = 3
  drop_path: float = 0.0
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32
  remat: str = 'none'
  convolution_implementation: str = 'auto'

  def setup(self):
    checks.check_choice('PVT', 'remat', self.remat, remat.REMATS)
    checks.check_stages(
      'PVT',
      self.stage_sizes,
      widths=self.widths,
      num_heads=self.num_heads,
      mlp_ratios=self.mlp_ratios,
      reductions=self.reductions,
    )
    dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    rates = iter(transformer.drop_path_rates(self.drop_path, self.stage_sizes))
    side = self.image_size
    for stage, size in enumerate(self.stage_sizes):
      width, patch = self.widths[stage], 2 if stage else self.patch_size
      side //= patch
      embed = transformer.PatchEmbed(width, patch, **dtypes)
      blocks = [
        transformer.Block(
          self._mixing_layer(stage, **dtypes),
          self.mlp_ratios[stage],
          float(next(rates)),
          _EPSILON,
          **dtypes,
        )
        for _ in range(size)
      ]
      name = f'position{stage + 1}'
      setattr(self, name, self._embedding(name, side, side, width))
      setattr(self, f'embed{stage + 1}', embed)
      setattr(self, f'stage{stage + 1}', blocks)
    self.token = self._embedding('token', self.widths[-1])
    self.token_position = self._embedding('token_position', self.widths[-1])
    self.norm = nn.LayerNorm(_EPSILON, **dtypes)
    self.head = transformer.Linear(self.num_classes, **dtypes)

  def features(
    self, x: jax.Array, *, train: bool = False
  ) -> dict[str, jax.Array]:
    """Maps images [b, h, w, 3] to {'stage1': [b, h/4, w/4, c], ...}.

    Without the class token and the last norm, as in the source's detectors.
    Pixels that do not fill a patch are dropped.
    """
    return self._stages(x, train, classify=False)[0]

  def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
    """Maps normalised images [b, h, w, 3] to float32 logits [b, classes]."""
    _, x = self._stages(x, train, classify=True)
    return self.head(self.norm(x[:, 0])).astype(jnp.float32)

  def _stages(self, x, train, *, classify):
    """The maps of all stages, and the last as a sequence after the token."""
    checks.check_map('PVT', x)
    x = x.astype(self.dtype)
    stages = {}
    for stage in range(1, len(self.stage_sizes) + 1):
      x = getattr(self, f'embed{stage}')(x)
      position = _resized(getattr(self, f'position{stage}'), x)
      x = xla_cpu.add_to_each(x, position)
      grid = x.shape[1:3]
      y = x.reshape(len(x), -1, x.shape[-1])
      if classify and stage == len(self.stage_sizes):
        token = (self.token + self.token_position).astype(x.dtype)
        token = jnp.broadcast_to(token, (len(x), 1, token.size))
        y = jnp.concatenate([token, y], axis=1)
      y = remat.apply_blocks(self, f'stage{stage}', y, grid, train=train)
      x = y[:, y.shape[1] - grid[0] * grid[1] :].reshape(x.shape)
      stages[f'stage{stage}'] = x
    return stages, y

  def _embedding(self, name, *shape):
    return self.param(name, transformer.NORMAL, shape, self.param_dtype)

  def _mixing_layer(self, stage, **dtypes):
    attention = spatial_reduction_attention.SpatialReductionAttention(
      self.widths[stage],
      self.num_heads[stage],
      self.reductions[stage],
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


def _resized(position: jax.Array, x: jax.Array) -> jax.Array:
  """Position embeddings [h, w, c] for the map, interpolated if need be."""
  if position.shape != x.shape[1:]:
    # As PyTorch interpolates: no smoothing where the map is smaller.
    position = jax.image.resize(
      position.astype(jnp.float32), x.shape[1:], 'bilinear', antialias=False
    )
  return position.astype(x.dtype)
