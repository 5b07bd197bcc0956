"""Geometry of odd square windows: reach, sizes, and the checks of both."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def reach(kernel_size: int, dilation: int = 1) -> int:
  """Pixels by which a window extends beyond its centre."""
  return dilation * (kernel_size - 1) // 2


def same_padding(
  kernel_size: tuple[int, int], dilation: int = 1
) -> list[tuple[int, int]]:
  """Zeros around the rows and the columns with which a map keeps its size."""
  return [(reach(side, dilation),) * 2 for side in kernel_size]


def output_size(size: int, strides: int) -> int:
  """Windows along a side of `size` pixels: ceil(size / strides)."""
  return -(-size // strides)


def check_window(name: str, kernel_size: int, strides: int, dilation: int):
  """Raises ValueError unless the three numbers describe a centred window."""
  if kernel_size < 1 or kernel_size % 2 == 0:
    nearest = max(1, kernel_size + 1)
    raise ValueError(
      f'{name}: kernel size {kernel_size} has no centre; odd sizes from 1 up '
      f'are allowed; nearest that works: {nearest}.'
    )
  for field, value in (('strides', strides), ('dilation', dilation)):
    if value < 1:
      raise ValueError(
        f'{name}: {field}={value}; integers from 1 up are allowed; nearest '
        'that works: 1.'
      )


def check_reflection(
  name: str, height: int, width: int, kernel_size: int, dilation: int
):
  """Raises ValueError if a map is too small to be padded by reflection."""
  pad = reach(kernel_size, dilation)
  if min(height, width) <= pad:
    raise ValueError(
      f'{name}: a {height}x{width} map cannot be reflected by {pad} pixels '
      f'(kernel size {kernel_size}, dilation {dilation}); the smallest side '
      f'that works is {pad + 1}. Use larger images or a smaller kernel.'
    )


def reflected(size: int, pad: int) -> Int[np.ndarray, ' positions']:
  """Pixel at each position of a line that is padded by reflection.

  The edge is not repeated: `reflected(4, 2)` is 2 1 0 1 2 3 2 1.

  Args:
    size: Pixels of the line, > pad.
    pad: Pixels added at each end.

  Returns:
    Pixels in 0..size-1 of the size + 2 * pad positions.
  """
  return np.pad(np.arange(size), pad, mode='reflect')


def reflect(
  x: Float[Array, 'b h w *c'], pad: int
) -> Float[Array, 'b h+2*{pad} w+2*{pad} *c']:
  """Pads rows and columns by `reflected` pixels."""
  width = ((0, 0), (pad, pad), (pad, pad)) + ((0, 0),) * (x.ndim - 3)
  return jnp.pad(x, width, mode='reflect')
