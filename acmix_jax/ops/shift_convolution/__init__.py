"""The convolution path of ACmix."""

from acmix_jax.ops.shift_convolution.api import (
  IMPLEMENTATIONS,
  convolve_bias,
  shift_convolution,
  shift_kernel,
)

__all__ = [
  'IMPLEMENTATIONS',
  'convolve_bias',
  'shift_convolution',
  'shift_kernel',
]
