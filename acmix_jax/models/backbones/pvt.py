"""PVT-Tiny/Small with spatial-reduction attention or ACmix.

Source: whai362/PVT classification/pvt.py. Here position embeddings are resized
whenever the map is not theirs (the source compares the number of pixels alone,
with that of the first stage). The paper gives figures of PVT-ACmix but no code
was published: our reading is described in nn/spatial_reduction_attention.py.
"""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from acmix_jax.models.backbones import backbone
from acmix_jax.nn import (
  acmix,
  checks,
  layers,
  spatial_reduction_attention,
  transformer,
)
from acmix_jax.ops import resize

EPSILON = 1e-6  # of the norms


class PVT(backbone.Backbone):
  """A pyramid of transformers.

  Attributes:
    image_size: Side of the images whose grid the position embeddings have; at
      other sizes they are interpolated.
    patch_size: Side of the first stage's patches; later ones have 2.
    widths: Channels in each stage.
    num_heads: Heads in each stage.
    mlp_ratios: Hidden features of the MLPs / channels, in each stage.
    reductions: Side of the patches that become one key, in each stage.
    kernel_conv: Side of ACmix's shift convolution.
    drop_path: Probability that an image skips a branch of the last block; it
      grows from 0 at the first block in equal steps.
    token_position: Whether the last stage has the position of a class token as
      a parameter, too. Nothing uses it: PVT's segmentation code keeps it, and
      its weights are exchanged with it.
    convolution_implementation: Implementation of `ops.shift_convolution`.
  """

  image_size: int = 224
  patch_size: int = 4
  widths: tuple[int, ...] = (64, 128, 320, 512)
  num_heads: tuple[int, ...] = (1, 2, 5, 8)
  mlp_ratios: tuple[float, ...] = (8, 8, 4, 4)
  reductions: tuple[int, ...] = (8, 4, 2, 1)
  kernel_conv: int = 3
  drop_path: float = 0.0
  token_position: bool = False
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
    return self._by_stage(self.widths)

  @property
  def side_multiple(self) -> int:
    """Sides that no patch is cut at, nor one that becomes a key."""
    strides = self.strides.values()
    return math.lcm(
      *(a * b for a, b in zip(strides, self.reductions, strict=True))
    )

  def setup(self):
    self._check_fields(
      *('image_size', 'patch_size', 'widths', 'num_heads', 'reductions'),
      widths=self.widths,
      num_heads=self.num_heads,
      mlp_ratios=self.mlp_ratios,
      reductions=self.reductions,
    )
    dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    rates = transformer.drop_path_rates(self.drop_path, self.stage_sizes)

    def make_block(stage, i):
      name = f'stage{stage + 1}_{i}'
      return transformer.Block(
        self._make_operator(name, stage, **dtypes),
        self.mlp_ratios[stage],
        rates[stage][i],
        EPSILON,
        **dtypes,
        name=name,
      )

    self.embeds = [
      transformer.PatchEmbed(
        width, 2 if stage else self.patch_size, **dtypes, name=f'{name}_embed'
      )
      for stage, (name, width) in enumerate(self.channels.items())
    ]
    self.positions = [
      self._position(name, width) for name, width in self.channels.items()
    ]
    if self.token_position:
      *_, (name, width) = self.channels.items()
      self.param(
        f'{name}_token_position',
        transformer.NORMAL,
        (width,),
        self.param_dtype,
      )
    self.blocks = [
      [make_block(stage, i) for i in range(size)]
      for stage, size in enumerate(self.stage_sizes)
    ]

  def __call__(
    self,
    images: Float[Array | np.ndarray, 'b h w 3'],
    *,
    token: Float[Array | np.ndarray, ' c'] | None = None,
    train: bool = False,
  ) -> backbone.Stages:
    """Maps images to stages.

    Pixels that do not fill a patch are dropped.

    Args:
      images: Normalised images.
      token: Class token, put in front of the last stage's sequence; the result
        then has an entry 'token'. None: no token, as in the source's detectors.
      train: Whether to drop paths.
    """
    checks.check_map('PVT', images)
    x, stages = images.astype(self.dtype), {}
    for stage, (name, embed, position) in enumerate(
      zip(self.channels, self.embeds, self.positions, strict=True), start=1
    ):
      x = embed(x)
      x = layers.add_to_each(x, _resized(position, x))
      y = x.reshape(x.shape[0], -1, x.shape[-1])
      tokens = int(token is not None and stage == len(self.stage_sizes))
      if tokens:
        first = token.astype(x.dtype)
        first = jnp.broadcast_to(first, (x.shape[0], 1, token.size))
        y = jnp.concatenate([first, y], axis=1)
      trains = self._trains(stage, train)
      y = self._apply_blocks(stage, y, grid=x.shape[1:3], train=trains)
      y = self._output(stage, y)
      stages[name] = x = y[:, tokens:].reshape(x.shape)
    if token is not None:
      stages['token'] = y[:, 0]
    return stages

  def _position(self, name, width):
    side = self.image_size // self.strides[name]
    return self.param(
      f'{name}_position',
      transformer.NORMAL,
      (side, side, width),
      self.param_dtype,
    )

  def _make_operator(self, block, stage, **dtypes):
    attention = spatial_reduction_attention.SpatialReductionAttention(
      self.widths[stage],
      self.num_heads[stage],
      self.reductions[stage],
      parent=None,
      **dtypes,
    )
    return acmix.make_operator(
      self.operator_of(block),
      attention,
      kernel_size=self.kernel_conv,
      implementation=self.convolution_implementation,
      **dtypes,
    )


def _resized(position, x):
  """Position embeddings [h, w, c] for the map, interpolated if need be."""
  if position.shape != x.shape[1:]:
    single = position.astype(jnp.float32)[None]
    position = resize.bilinear(single, x.shape[1:3])[0]
  return position.astype(x.dtype)
