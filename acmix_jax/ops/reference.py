"""The paper's equations, slow and obvious: what every fast form must equal.

Loops run over the positions of the window, as the equations are written. Use
it to read and to test, not to train.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from acmix_jax.ops import windows


def local_attention(
  q: Float[Array, 'b h w n d'],
  k: Float[Array, 'b h w n d'],
  v: Float[Array, 'b h w n d'],
  position: Float[Array, 'h w d'] | None = None,
  *,
  kernel_size: int = 7,
  strides: int = 1,
  dilation: int = 1,
) -> Float[Array, 'b ho wo n d']:
  """Softmax attention of each pixel over the window around it (eq. 1, 2).

  Args:
    q: Queries, not scaled; every `strides`-th pixel is used.
    k: Keys.
    v: Values.
    position: Encoding of each pixel, shared by images and heads.
    kernel_size: Odd side of the window.
    strides: Pixels between queries.
    dilation: Pixels between neighbouring keys of a window.

  Returns:
    The sums of the values.
  """
  h, w, d = q.shape[1], q.shape[2], q.shape[4]
  if position is None:
    position = jnp.zeros((h, w, d), q.dtype)
  pad = windows.reach(kernel_size, dilation)
  row_of, column_of = windows.reflected(h, pad), windows.reflected(w, pad)
  logits, values = [], []
  query = q[:, ::strides, ::strides] * d**-0.5
  here = position[None, ::strides, ::strides, None]
  for i in range(0, dilation * kernel_size, dilation):
    for j in range(0, dilation * kernel_size, dilation):
      rows = row_of[i : i + h : strides, None]
      columns = column_of[None, j : j + w : strides]
      relative = here - position[None, rows, columns, None]
      logits.append(jnp.sum(query * (k[:, rows, columns] + relative), axis=-1))
      values.append(v[:, rows, columns])
  weights = jax.nn.softmax(jnp.stack(logits, axis=-1), axis=-1)
  return jnp.einsum('bhwnt,tbhwnd->bhwnd', weights, jnp.stack(values))


def shift_convolution(
  maps: Float[Array, 'b h w m d'],
  fc_kernel: Float[Array, 'm t'],
  depthwise_kernel: Float[Array, 'kh kw t f'],
  offset: Float[Array, '#b #h #w #t #d'] | None = None,
  *,
  strides: int = 1,
  dilation: int = 1,
) -> Float[Array, 'b ho wo f']:
  """Mixes m maps into t and sums them, each shifted by a small kernel.

  Args:
    maps: Projections.
    fc_kernel: Fully connected weights, shared by the d channels.
    depthwise_kernel: Weights of d groups with n = f / d outputs each: output
      channel c reads channel c // n of the maps.
    offset: Added to the mixed maps before zero padding.
    strides: Pixels between outputs.
    dilation: Pixels between neighbouring taps.

  Returns:
    The sums of the shifted maps.
  """
  b, h, w, _, d = maps.shape
  mixed = jnp.einsum('bhwmd,mt->bhwtd', maps, fc_kernel)
  if offset is not None:
    mixed = mixed + offset
  pad_h = windows.reach(depthwise_kernel.shape[0], dilation)
  pad_w = windows.reach(depthwise_kernel.shape[1], dilation)
  mixed = jnp.pad(mixed, ((0, 0), (pad_h,) * 2, (pad_w,) * 2, (0, 0), (0, 0)))
  total = 0.0
  for i in range(depthwise_kernel.shape[0]):
    for j in range(depthwise_kernel.shape[1]):
      y, x = i * dilation, j * dilation
      shifted = mixed[:, y : y + h : strides, x : x + w : strides]
      tap = depthwise_kernel[i, j].reshape(
        -1, d, depthwise_kernel.shape[-1] // d
      )
      total += jnp.einsum('bhwtd,tdn->bhwdn', shifted, tap)
  return total.reshape(*total.shape[:3], -1)
