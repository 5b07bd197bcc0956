"""The convolution path of ACmix."""

from acmix_jax.ops.shift_convolution.api import (
  IMPLEMENTATIONS,
  shift_convolution,
  shift_kernel,
)

__all__ = ['IMPLEMENTATIONS', 'shift_convolution', 'shift_kernel']
