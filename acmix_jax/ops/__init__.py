"""Pure functions on jax arrays."""

from acmix_jax.ops import reference, windows
from acmix_jax.ops.local_attention import local_attention
from acmix_jax.ops.shift_convolution import shift_convolution, shift_kernel

__all__ = [
  'local_attention',
  'reference',
  'shift_convolution',
  'shift_kernel',
  'windows',
]
