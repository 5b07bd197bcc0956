"""SAN-10/15/19 with patchwise attention or ACmix.

Source: hszhao/SAN model/san.py with sa_type 1 and `Bottleneck`, whose first
stage, at half of the image's size, is part of the stem here. The paper gives
figures of SAN-ACmix but no code was published: how the maps of SAN enter the
convolution path is our reading, described in nn/patchwise_attention.py. Among
the complete readings it is the one whose cost is nearest the paper's Table 1.
"""

import functools
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from acmix_jax.models.backbones import backbone
from acmix_jax.nn import acmix, checks, layers, patchwise_attention, remat

# Bottleneck ratio: trunk channels / attention channels.
_EXPANSION = 4


class Block(nn.Module):
  """x + dense(relu(norm2(operator(relu(norm1(x)))))).

  Attributes:
    operator: Attention or its ACmix; make it with `parent=None`.
    norm: Normalisation layer from a name.
    dtype: Computation dtype.
    param_dtype: Parameter dtype.
  """

  operator: nn.Module
  norm: Callable[..., nn.Module]
  dtype: DTypeLike | None = None
  param_dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, 'b h w c'], *, train: bool
  ) -> Float[Array, 'b h w c']:
    """Applies the block to a map."""
    y = nn.relu(self.norm(name='norm1')(x, train=train))
    y = self.operator(y, train=train)
    y = nn.relu(self.norm(name='norm2')(y, train=train))
    y = layers.Dense(
      x.shape[-1], dtype=self.dtype, param_dtype=self.param_dtype, name='dense'
    )(y)
    return x + y


class SAN(backbone.Backbone):
  """A SAN whose blocks have patchwise attention or ACmix.

  The stem and each stage halve the map, so an image needs
  strides * (kernel_size + 1) / 2 pixels a side for the window of a stage: 128
  for the last of SAN-10.

  Attributes:
    widths: Channels of the trunk in each stage, multiples of 32.
    kernel_sizes: Side of the attention window in each stage.
    stem_size: Blocks of the stem.
    stem_width: Channels of the stem, a multiple of 32.
    stem_kernel_size: Side of the attention window in the stem.
    kernel_conv: Side of ACmix's shift convolution.
    norm_groups: Groups of the batch with batch statistics of their own.
    batch_norm: What the norms train, one of `layers.BATCH_NORM_MODES`.
    convolution_implementation: Implementation of `ops.shift_convolution`.
  """

  widths: tuple[int, ...] = (256, 512, 1024, 2048)
  kernel_sizes: tuple[int, ...] = (7, 7, 7, 7)
  stem_size: int = 3
  stem_width: int = 64
  stem_kernel_size: int = 3
  kernel_conv: int = 3
  norm_groups: int = 1
  batch_norm: str = 'batch'
  convolution_implementation: str = 'auto'

  @property
  def strides(self) -> dict[str, int]:
    """Pixels of the image between pixels of each stage."""
    return self._by_stage(4 * 2**i for i in range(len(self.stage_sizes)))

  @property
  def channels(self) -> dict[str, int]:
    """Channels of each stage."""
    return self._by_stage(self.widths)

  @property
  def block_names(self) -> list[str]:
    """Names of the blocks, those of the stem first."""
    stem = [f'stem_{i}' for i in range(self.stem_size)]
    return stem + super().block_names

  @property
  def side_multiple(self) -> int:
    """Pixels of the image between pixels of the last stage."""
    return max(self.strides.values())

  def setup(self):
    self._check_fields(
      *('widths', 'stem_size', 'stem_width', 'norm_groups'),
      widths=self.widths,
      kernel_sizes=self.kernel_sizes,
    )
    dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    dense = functools.partial(layers.Dense, use_bias=False, **dtypes)
    norm = functools.partial(
      layers.BatchNorm, self.norm_groups, self.batch_norm, **dtypes
    )

    def make_blocks(name, size, width, kernel_size):
      return [
        Block(
          self._make_operator(f'{name}_{i}', width, kernel_size, **dtypes),
          norm,
          **dtypes,
          name=f'{name}_{i}',
        )
        for i in range(size)
      ]

    self.stem_conv1, self.stem_norm1 = dense(self.stem_width), norm()
    self.stem_conv2, self.stem_norm2 = dense(self.stem_width), norm()
    self.stem = make_blocks(
      'stem', self.stem_size, self.stem_width, self.stem_kernel_size
    )
    self.convs = [
      dense(width, name=f'{name}_conv') for name, width in self.channels.items()
    ]
    self.blocks = [
      make_blocks(*fields)
      for fields in zip(
        self.channels,
        self.stage_sizes,
        self.widths,
        self.kernel_sizes,
        strict=True,
      )
    ]
    self.norms = [norm(name=f'{name}_norm') for name in self.channels]

  def __call__(
    self, images: Float[Array | np.ndarray, 'b h w 3'], *, train: bool = False
  ) -> backbone.Stages:
    """Maps normalised images to stages.

    A pixel beyond a multiple of 2 is dropped where a map is halved.
    """
    checks.check_map('SAN', images)
    x = self._apply_stem(images.astype(self.dtype), self._trains(0, train))
    stages = {}
    for stage, (name, conv, norm) in enumerate(
      zip(self.channels, self.convs, self.norms, strict=True), start=1
    ):
      trains = self._trains(stage, train)
      x = conv(layers.max_pool(x, 2))
      x = self._apply_blocks(stage, x, train=trains)
      x = nn.relu(norm(x, train=trains))
      stages[name] = x = self._output(stage, x)
    return stages

  def _apply_stem(self, x, train):
    x = nn.relu(self.stem_norm1(self.stem_conv1(x), train=train))
    x = self.stem_conv2(layers.max_pool(x, 2))
    x = remat.apply_blocks(self, lambda model: model.stem, x, train=train)
    return nn.relu(self.stem_norm2(x, train=train))

  def _frozen_patterns(self):
    return super()._frozen_patterns() + layers.frozen_norms(self.batch_norm)

  def _make_operator(self, block, width, kernel_size, **dtypes):
    attention = patchwise_attention.PatchwiseAttention(
      width // _EXPANSION,
      kernel_size,
      self.norm_groups,
      self.batch_norm,
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
