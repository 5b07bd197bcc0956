"""A feature pyramid network: the neck between backbone and dense heads."""

import functools
from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen as nn
from jax.nn import initializers
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from acmix_jax.nn import checks, layers
from acmix_jax.ops import resize

# Start values of the kernels, by name.
_STARTS = {
  'kaiming': layers.KAIMING_FAN_OUT,
  'xavier': initializers.xavier_uniform(),
}
_EXTRA_LEVELS = ('none', 'pool', 'conv')


class FPN(nn.Module):
  """Maps of a backbone, finest first, with what coarser ones know added.

  A 1x1 convolution of each map, to which the sum of the next coarser level is
  added, repeated to its size; then a 3x3 convolution of each sum. Both have
  biases, and no norm or activation.

  Source: `FPN` of mmsegmentation and mmdetection (`lateral_convs`,
  `fpn_convs`). Sizes need not be halves: pixels repeat by `resize.nearest`.

  Attributes:
    features: Channels of every level.
    extra_levels: Levels beyond the coarsest map. 'none'; 'pool': every second
      row and column of the last level (Mask R-CNN); 'conv': a convolution of
      the coarsest map with strides 2, and one of that (RetinaNet).
    start: Start value of the kernels: 'xavier' (uniform) as in mmdetection and
      mmsegmentation from 0.14 on, or 'kaiming' (normal, fan_out) as in
      mmsegmentation before, with which PVT was trained.
    dtype: Computation dtype.
    param_dtype: Parameter dtype.
  """

  features: int = 256
  extra_levels: str = 'none'
  start: str = 'xavier'
  dtype: DTypeLike | None = None
  param_dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, maps: Sequence[Float[Array, 'b _h _w _c']]
  ) -> list[Float[Array, 'b _ho _wo f']]:
    """Levels of the pyramid, finest first: one a map, then the extra ones."""
    checks.check_choice('FPN', 'start', self.start, tuple(_STARTS))
    checks.check_choice('FPN', 'extra_levels', self.extra_levels, _EXTRA_LEVELS)
    conv = functools.partial(
      layers.Conv,
      self.features,
      use_bias=True,
      kernel_init=_STARTS[self.start],
      dtype=self.dtype,
      param_dtype=self.param_dtype,
    )
    sums = [conv(1, name=f'lateral{i}')(x) for i, x in enumerate(maps)]
    for i in reversed(range(len(sums) - 1)):
      sums[i] += resize.nearest(sums[i + 1], sums[i].shape[1:3])
    levels = [conv(3, name=f'output{i}')(x) for i, x in enumerate(sums)]
    if self.extra_levels == 'pool':
      levels.append(levels[-1][:, ::2, ::2])
    elif self.extra_levels == 'conv':
      levels.append(conv(3, strides=2, name='extra0')(maps[-1]))
      levels.append(conv(3, strides=2, name='extra1')(levels[-1]))
    return levels
