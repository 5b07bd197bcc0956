"""ResNet-26/38/50 with convolution, self-attention or ACmix in the middle.

Source: torchvision's ResNet (v1.5: the stride is in the middle layer) and
LeapLabTHU/ACmix ResNet/ResNet_ImageNet.py, which replaces each 3x3 convolution
of it by an ACmix. Differs: the shift kernels keep their start value (the
source overwrites it); inputs of any size that the windows fit.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from acmix_jax.nn import acmix, checks, layers, local_attention, remat
from acmix_jax.ops import xla_cpu

MIXES = ('conv', 'attention', 'acmix')
_EXPANSION = 4


class Bottleneck(nn.Module):
  """1x1 convolution, mixing layer, 1x1 convolution, and the identity.

  Attributes:
    mix: makes the mixing layer from (features, strides) and a name.
    width: channels of the mixing layer; the block's output has 4 times these.
    strides: of the mixing layer and the shortcut.
    conv: convolution layer from (features, kernel, strides) and a name.
    norm: normalisation layer from a name.
  """

  mix: Callable[..., nn.Module]
  width: int
  strides: int
  conv: Callable[..., nn.Module]
  norm: Callable[..., nn.Module]

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Maps [b, h, w, c] to [b, ceil(h/s), ceil(w/s), 4 * width]."""
    features = _EXPANSION * self.width
    y = self.conv(self.width, 1, name='conv1')(x)
    y = nn.relu(self.norm(name='norm1')(y, train=train))
    y = self.mix(self.width, strides=self.strides, name='mix')(y)
    y = nn.relu(self.norm(name='norm2')(y, train=train))
    y = self.conv(features, 1, name='conv3')(y)
    y = self.norm(name='norm3')(y, train=train)
    if x.shape != y.shape:
      x = self.conv(features, 1, self.strides, name='shortcut_conv')(x)
      x = self.norm(name='shortcut_norm')(x, train=train)
    return nn.relu(x + y)


class ResNet(nn.Module):
  """A ResNet whose blocks mix pixels by convolution, attention or ACmix.

  Attributes:
    stage_sizes: blocks of the four stages.
    mix: 'conv' (3x3), 'attention' (local) or 'acmix' (both).
    num_classes: outputs of the classifier.
    width: channels of the stem and of the first stage's mixing layers.
    stem: 'imagenet' (7x7 stride 2, then max pooling) or 'small' (3x3 stride 1,
      for images of some 32 pixels; the features are then 4 times as fine).
    num_heads: heads of attention and ACmix.
    kernel_att: side of their window.
    kernel_conv: side of ACmix's shift convolution.
    norm_groups: groups of the batch with batch statistics of their own.
    dtype: of the computation; logits are float32.
    param_dtype: of the parameters.
    remat: what is kept of a block for its gradient; see `remat.apply_blocks`.
    attention_implementation: of `ops.local_attention`.
    convolution_implementation: of `ops.shift_convolution`.
  """

  stage_sizes: tuple[int, ...]
  mix: str = 'conv'
  num_classes: int = 1000
  width: int = 64
  stem: str = 'imagenet'
  num_heads: int = 4
  kernel_att: int = 7
  kernel_conv: int = 3
  norm_groups: int = 1
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32
  remat: str = 'none'
  attention_implementation: str = 'auto'
  convolution_implementation: str = 'auto'

  def setup(self):
    checks.check_choice('ResNet', 'remat', self.remat, remat.REMATS)
    checks.check_choice('ResNet', 'stem', self.stem, ('imagenet', 'small'))
    dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    conv = functools.partial(
      layers.Conv, kernel_init=layers.KAIMING_FAN_OUT, **dtypes
    )
    norm = functools.partial(layers.BatchNorm, self.norm_groups, **dtypes)
    side, strides = (7, 2) if self.stem == 'imagenet' else (3, 1)
    self.stem_conv = conv(self.width, side, strides)
    self.stem_norm = norm()
    for number, size in enumerate(self.stage_sizes):
      blocks = [
        Bottleneck(
          mix=self._mixing_layer(conv),
          width=self.width * 2**number,
          strides=2 if number and not i else 1,
          conv=conv,
          norm=norm,
        )
        for i in range(size)
      ]
      setattr(self, f'stage{number + 1}', blocks)
    self.head = layers.Dense(self.num_classes, **dtypes)

  def features(
    self, x: jax.Array, *, train: bool = False
  ) -> dict[str, jax.Array]:
    """Maps images [b, h, w, 3] to {'stage1': [b, h/4, w/4, c], ...}."""
    checks.check_map('ResNet', x)
    x = self.stem_conv(x.astype(self.dtype))
    x = nn.relu(self.stem_norm(x, train=train))
    if self.stem == 'imagenet':
      x = xla_cpu.max_pool(x, 3, padding=1)
    stages = {}
    for number in range(1, len(self.stage_sizes) + 1):
      x = remat.apply_blocks(self, f'stage{number}', x, train=train)
      stages[f'stage{number}'] = x
    return stages

  def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
    """Maps normalised images [b, h, w, 3] to float32 logits [b, classes]."""
    x = self.features(x, train=train)[f'stage{len(self.stage_sizes)}']
    return self.head(x.mean(axis=(1, 2))).astype(jnp.float32)

  def _mixing_layer(self, conv):
    """The constructor of the mixing layers from (features, strides, name)."""
    checks.check_choice('ResNet', 'mix', self.mix, MIXES)
    if self.mix == 'conv':
      return functools.partial(conv, kernel_size=3)
    options = dict(
      num_heads=self.num_heads,
      kernel_init=layers.KAIMING_FAN_OUT,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
    )
    if self.mix == 'attention':
      return functools.partial(
        local_attention.LocalAttention,
        kernel_size=self.kernel_att,
        implementation=self.attention_implementation,
        **options,
      )
    return functools.partial(
      acmix.ACmix,
      kernel_att=self.kernel_att,
      kernel_conv=self.kernel_conv,
      attention_implementation=self.attention_implementation,
      convolution_implementation=self.convolution_implementation,
      **options,
    )
