"""Windows that tile a map: Swin's attention, its bias, shift and padding."""

from acmix_jax.ops.shifted_windows.api import (
  IMPLEMENTATIONS,
  relative_bias,
  window_attention,
)
from acmix_jax.ops.shifted_windows.geometry import (
  check_whole,
  shift_regions,
  valid_pixels,
)

__all__ = [
  'IMPLEMENTATIONS',
  'check_whole',
  'relative_bias',
  'shift_regions',
  'valid_pixels',
  'window_attention',
]
