"""The convolution path of ACmix: mix the projections, shift them, and sum.

Exact implementations behind `shift_convolution`:
  shifts: mixes the maps, then one weighted slice for each tap.
  conv: mixes the maps, then one grouped convolution.
  folded: both steps are linear, so the product of both weights applies at
    once: for one channel after the other a matrix product gives what its maps
    send to each neighbour, and these are shifted and added. The t * d mixed
    maps are never in memory.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from acmix_jax.ops import shift_convolution_folded, windows

# Sums are kept in single precision.
_SUM = jnp.float32


def shift_convolution(
  maps: jax.Array,
  mixing: jax.Array,
  kernel: jax.Array,
  offset: jax.Array | None = None,
  *,
  strides: int = 1,
  dilation: int = 1,
  implementation: str = 'folded',
) -> jax.Array:
  """Mixes m maps into t, then a grouped convolution that starts as shifts.

  Source: LeapLabTHU/ACmix ResNet/test_bottleneck.py, `fc` and `dep_conv`.
  Differs: NHWC; any odd kernel and any dilation; the padding follows the
  kernel (the source fixes it at 1). No bias after the convolution, as the
  source's initialisation removes the one it declares.

  Args:
    maps: the projections, one map a head [b, h, w, m, d].
    mixing: fully connected weights [m, t], shared by the d channels.
    kernel: [k, k, t, d * n]; group c // n of output channel c is channel
      c // n of the maps. `shift_kernel` is its start value.
    offset: added to the mixed maps before zero padding, of a shape that
      broadcasts to [b, h, w, t, d]: a bias is [1, 1, 1, t, 1].
    strides: pixels between outputs.
    dilation: pixels between neighbouring taps.
    implementation: a name of `IMPLEMENTATIONS`.

  Returns:
    [b, ceil(h / strides), ceil(w / strides), d * n] in the dtype of maps.

  Raises:
    ValueError: shapes that disagree, a window that is not centred, or an
      unknown implementation.
  """
  _check(maps, mixing, kernel, offset, strides, dilation, implementation)
  mixing, kernel = mixing.astype(maps.dtype), kernel.astype(maps.dtype)
  if offset is not None:
    offset = offset.astype(maps.dtype)
  convolve = IMPLEMENTATIONS[implementation]
  return convolve(maps, mixing, kernel, offset, strides, dilation)


def shift_kernel(kernel_size: int, features: int) -> jax.Array:
  """The start value of the kernel: map t is moved by the t-th of k*k shifts.

  Args:
    kernel_size: odd k.
    features: output channels; all get the same shifts.

  Returns:
    float32 [k, k, k * k, features], one where t == k * row + column.
  """
  taps = kernel_size**2
  one_hot = jnp.eye(taps).reshape(kernel_size, kernel_size, taps, 1)
  return jnp.tile(one_hot, features)


def _check(maps, mixing, kernel, offset, strides, dilation, implementation):
  name = 'shift_convolution'
  if maps.ndim != 5:
    raise ValueError(f'{name}: maps {maps.shape}; [b, h, w, m, d] is needed.')
  m, d = maps.shape[3:]
  if mixing.ndim != 2 or mixing.shape[0] != m:
    raise ValueError(
      f'{name}: mixing {mixing.shape}; [m, t] with m = {m} is needed.'
    )
  t = mixing.shape[1]
  if kernel.ndim != 4 or kernel.shape[2] != t or kernel.shape[3] % d:
    raise ValueError(
      f'{name}: kernel {kernel.shape}; [k, k, t, d * n] with t = {t}, d = {d} '
      'is needed.'
    )
  mixed = (*maps.shape[:3], t, d)
  if offset is not None and (
    offset.ndim != 5
    or any(n not in (1, m) for n, m in zip(offset.shape, mixed, strict=True))
  ):
    raise ValueError(
      f'{name}: offset {offset.shape}; a shape that broadcasts to '
      f'[b, h, w, t, d] = {mixed} is needed.'
    )
  for side in kernel.shape[:2]:
    windows.check_window(name, side, strides, dilation)
  if implementation not in IMPLEMENTATIONS:
    raise ValueError(
      f'{name}: no implementation {implementation!r}; known: '
      f'{", ".join(IMPLEMENTATIONS)}.'
    )


def _shifts(maps, mixing, kernel, offset, strides, dilation):
  h, w, d = maps.shape[1], maps.shape[2], maps.shape[4]
  mixed = _mix(maps, mixing, offset)
  mixed = jnp.pad(mixed, ((0, 0), *_edges(kernel, dilation), (0, 0), (0, 0)))
  kernel = kernel.reshape(*kernel.shape[:3], d, -1)
  total = jnp.zeros((), _SUM)
  for i in range(kernel.shape[0]):
    for j in range(kernel.shape[1]):
      y, x = i * dilation, j * dilation
      total += jnp.einsum(
        'bhwtd,tdn->bhwdn',
        mixed[:, y : y + h : strides, x : x + w : strides],
        kernel[i, j],
        preferred_element_type=_SUM,
      )
  return total.reshape(*total.shape[:3], -1).astype(maps.dtype)


def _conv(maps, mixing, kernel, offset, strides, dilation):
  mixed = _mix(maps, mixing, offset).swapaxes(3, 4)
  return lax.conv_general_dilated(
    mixed.reshape(*mixed.shape[:3], -1),
    kernel,
    window_strides=(strides, strides),
    padding=_edges(kernel, dilation),
    rhs_dilation=(dilation, dilation),
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    feature_group_count=maps.shape[4],
  )


def _folded(maps, mixing, kernel, offset, strides, dilation):
  folded = jnp.einsum('mt,yxtc->yxmc', mixing, kernel)
  out = shift_convolution_folded.convolve(maps, folded, strides, dilation)
  if offset is not None:
    # It is mixed already. A bias is the same for all images: so is its sum.
    shape = (len(offset), *maps.shape[1:3], kernel.shape[2], maps.shape[4])
    offset = jnp.broadcast_to(offset, shape)
    out += shift_convolution_folded.convolve(offset, kernel, strides, dilation)
  return out


def _mix(maps, mixing, offset):
  mixed = jnp.einsum('bhwmd,mt->bhwtd', maps, mixing)
  return mixed if offset is None else mixed + offset


def _edges(kernel, dilation):
  """Zeros before and after the rows and the columns of a map."""
  pads = [windows.padding(side, dilation) for side in kernel.shape[:2]]
  return [(pad, pad) for pad in pads]


IMPLEMENTATIONS: dict[str, Callable[..., jax.Array]] = {
  'shifts': _shifts,
  'conv': _conv,
  'folded': _folded,
}
