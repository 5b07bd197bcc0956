"""ResNet-26/38/50 with convolution, self-attention or ACmix in the middle.

Source: torchvision's ResNet (v1.5: the stride is in the middle layer) and
LeapLabTHU/ACmix ResNet/ResNet_ImageNet.py, which replaces each 3x3 convolution
of it by an ACmix. Here the depthwise kernels keep their start value (the source
overwrites it), and inputs may have any size that the windows fit.
"""

import functools
from collections.abc import Callable

import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from acmix_jax.models.backbones import backbone
from acmix_jax.nn import acmix, checks, layers, local_attention

# Channels of a block / channels of its operator.
_EXPANSION = 4


class Bottleneck(nn.Module):
  """1x1 convolution, operator, 1x1 convolution, and the identity.

  Attributes:
    operator: Convolution, attention or ACmix; make it with `parent=None`.
    width: Channels of the operator; the block's output has 4 times these.
    strides: Strides of the operator and the shortcut.
    conv: Convolution layer from (features, kernel, strides) and a name.
    norm: Normalisation layer from a name.
  """

  operator: nn.Module
  width: int
  strides: int
  conv: Callable[..., nn.Module]
  norm: Callable[..., nn.Module]

  @nn.compact
  def __call__(
    self, x: Float[Array, 'b h w c'], *, train: bool
  ) -> Float[Array, 'b ho wo f']:
    """Applies the block to a map."""
    features = _EXPANSION * self.width
    y = self.conv(self.width, 1, name='conv1')(x)
    y = nn.relu(self.norm(name='norm1')(y, train=train))
    y = self.operator(y)
    y = nn.relu(self.norm(name='norm2')(y, train=train))
    y = self.conv(features, 1, name='conv3')(y)
    y = self.norm(name='norm3')(y, train=train)
    if x.shape != y.shape:
      x = self.conv(features, 1, self.strides, name='shortcut_conv')(x)
      x = self.norm(name='shortcut_norm')(x, train=train)
    return nn.relu(x + y)


class ResNet(backbone.Backbone):
  """A ResNet whose blocks have a convolution, attention or ACmix.

  Attributes:
    operator: Operator of the blocks: 'conv' (3x3), or one of
      `acmix.OPERATORS`, of local attention.
    width: Channels of the stem and of the first stage's operators.
    stem: 'imagenet' (7x7 stride 2, then max pooling) or 'small' (3x3 stride 1,
      for images of some 32 pixels; the maps are then 4 times as fine).
    num_heads: Heads of attention and ACmix.
    kernel_att: Side of their window.
    kernel_conv: Side of ACmix's shift convolution.
    norm_groups: Groups of the batch with batch statistics of their own.
    batch_norm: What the norms train, one of `layers.BATCH_NORM_MODES`.
    attention_implementation: Implementation of `ops.local_attention`.
    convolution_implementation: Implementation of `ops.shift_convolution`.
  """

  operator: str = 'conv'
  width: int = 64
  stem: str = 'imagenet'
  num_heads: int = 4
  kernel_att: int = 7
  kernel_conv: int = 3
  norm_groups: int = 1
  batch_norm: str = 'batch'
  attention_implementation: str = 'auto'
  convolution_implementation: str = 'auto'

  @property
  def strides(self) -> dict[str, int]:
    """Pixels of the image between pixels of each stage."""
    first = 4 if self.stem == 'imagenet' else 1
    return self._by_stage(first * 2**i for i in range(len(self.stage_sizes)))

  @property
  def channels(self) -> dict[str, int]:
    """Channels of each stage."""
    return self._by_stage(_EXPANSION * width for width in self._widths())

  def setup(self):
    checks.check_choice('ResNet', 'stem', self.stem, ('imagenet', 'small'))
    self._check_fields('width', 'num_heads', 'norm_groups')
    dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    conv = functools.partial(
      layers.Conv, kernel_init=layers.KAIMING_FAN_OUT, **dtypes
    )
    norm = functools.partial(
      layers.BatchNorm, self.norm_groups, self.batch_norm, **dtypes
    )
    side, strides = (7, 2) if self.stem == 'imagenet' else (3, 1)
    self.stem_conv = conv(self.width, side, strides)
    self.stem_norm = norm()

    def make_block(stage, i, width):
      strides = 2 if stage > 1 and i == 0 else 1
      name = f'stage{stage}_{i}'
      return Bottleneck(
        self._make_operator(self.operator_of(name), width, strides),
        width,
        strides,
        conv,
        norm,
        name=name,
      )

    self.blocks = [
      [make_block(stage, i, width) for i in range(size)]
      for stage, (size, width) in enumerate(
        zip(self.stage_sizes, self._widths(), strict=True), start=1
      )
    ]

  def __call__(
    self, images: Float[Array | np.ndarray, 'b h w 3'], *, train: bool = False
  ) -> backbone.Stages:
    """Maps normalised images to stages, whose sides are rounded up."""
    checks.check_map('ResNet', images)
    x = self.stem_conv(images.astype(self.dtype))
    x = nn.relu(self.stem_norm(x, train=self._trains(0, train)))
    if self.stem == 'imagenet':
      x = layers.max_pool(x, 3, padding=1)
    stages = {}
    for stage, name in enumerate(self.channels, start=1):
      x = self._apply_blocks(stage, x, train=self._trains(stage, train))
      stages[name] = x = self._output(stage, x)
    return stages

  def _widths(self):
    return [self.width * 2**i for i in range(len(self.stage_sizes))]

  def _frozen_patterns(self):
    return super()._frozen_patterns() + layers.frozen_norms(self.batch_norm)

  def _make_operator(self, operator, width, strides):
    shared = dict(
      strides=strides, dtype=self.dtype, param_dtype=self.param_dtype
    )
    init = layers.KAIMING_FAN_OUT
    operators = ('conv', *acmix.OPERATORS)
    checks.check_choice('ResNet', 'operator', operator, operators)
    if operator == 'conv':
      return layers.Conv(width, 3, kernel_init=init, parent=None, **shared)
    return acmix.make_operator(
      operator,
      local_attention.LocalAttention(
        width,
        self.num_heads,
        self.kernel_att,
        implementation=self.attention_implementation,
        kernel_init=init,
        parent=None,
        **shared,
      ),
      kernel_size=self.kernel_conv,
      fc_init=init,
      implementation=self.convolution_implementation,
      **shared,
    )
