"""The convolution path of ACmix: mix the projections, shift them, and sum.

Exact implementations behind `shift_convolution`:
  shifts: mixes the maps, then one weighted slice for each tap.
  conv: both steps are linear, so the product of both weights applies at once,
    in one grouped convolution. The t * d mixed maps are never in memory.
  channels: the same product, one channel after the other.
  auto: channels on CPU, where XLA has no fast grouped convolution (it took
    fifty times as long), and conv elsewhere (on TPU it moves the fewest bytes).
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from acmix_jax.ops import images, shift_convolution_channels, windows

# Sums are kept in single precision.
_SUM = jnp.float32


def shift_convolution(
  maps: Sequence[jax.Array],
  mixing: jax.Array,
  kernel: jax.Array,
  offset: jax.Array | None = None,
  *,
  strides: int = 1,
  dilation: int = 1,
  implementation: str = 'auto',
) -> jax.Array:
  """Mixes m maps into t, then a grouped convolution that starts as shifts.

  Source: LeapLabTHU/ACmix ResNet/test_bottleneck.py, `fc` and `dep_conv`.
  Differs: NHWC; any odd kernel and any dilation; the padding follows the
  kernel (the source fixes it at 1). No bias after the convolution, as the
  source's initialisation removes the one it declares.

  Args:
    maps: the projections, each [b, h, w, m_i, d] with one map a head; m is the
      sum of the m_i.
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
  dtype = maps[0].dtype
  mixing, kernel = mixing.astype(dtype), kernel.astype(dtype)
  if offset is not None:
    offset = offset.astype(dtype)
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
  shapes = [x.shape for x in maps]
  if not shapes or any(
    len(shape) != 5 or shape[:3] + shape[4:] != shapes[0][:3] + shapes[0][4:]
    for shape in shapes
  ):
    raise ValueError(
      f'{name}: maps {shapes}; [b, h, w, m_i, d] with the same b, h, w, d are '
      'needed.'
    )
  b, h, w, _, d = shapes[0]
  m = sum(shape[3] for shape in shapes)
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
  mixed = b, h, w, t, d
  if offset is not None and (
    offset.ndim != 5
    or any(
      given not in (1, wanted)
      for given, wanted in zip(offset.shape, mixed, strict=True)
    )
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
  _, h, w, _, d = maps[0].shape
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
  return total.reshape(*total.shape[:3], -1).astype(mixed.dtype)


def _fold(convolve):
  """An implementation that convolves with the product of both weights.

  Args:
    convolve: (maps, kernel, strides, dilation), of several [b, h, w, m_i, d] by
      [k, k, sum of m_i, d * n].
  """

  def fold(maps, mixing, kernel, offset, strides, dilation):
    folded = jnp.einsum('mt,yxtc->yxmc', mixing, kernel)
    out = convolve(maps, folded, strides, dilation)
    if offset is not None:
      # It is mixed already. A bias is the same for all images and channels: it
      # stays one image and one group.
      b, h, w, _, _ = maps[0].shape
      shared, _, _, _, d = offset.shape
      offset = jnp.broadcast_to(offset, (shared, h, w, kernel.shape[2], d))
      offset = convolve([offset], kernel, strides, dilation)
      out = out + offset if shared == b else images.add_to_each(out, offset[0])
    return out

  return fold


def _conv(maps, kernel, strides, dilation):
  b, h, w, _, d = maps[0].shape
  x = jnp.concatenate(maps, axis=3).swapaxes(3, 4)
  return lax.conv_general_dilated(
    x.reshape(b, h, w, -1),
    kernel,
    window_strides=(strides, strides),
    padding=_edges(kernel, dilation),
    rhs_dilation=(dilation, dilation),
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    feature_group_count=d,
  )


def _auto(maps, kernel, strides, dilation):
  return lax.platform_dependent(
    *(list(maps), kernel),
    cpu=lambda *args: shift_convolution_channels.convolve(
      *args, strides, dilation
    ),
    default=lambda *args: _conv(*args, strides, dilation),
  )


def _mix(maps, mixing, offset):
  """The mixed maps [b, h, w, t, d]."""
  total = jnp.zeros((), mixing.dtype) if offset is None else offset
  first = 0
  for x in maps:
    weights = mixing[first : first + x.shape[3]]
    total += jnp.einsum('bhwmd,mt->bhwtd', x, weights)
    first += x.shape[3]
  return total


def _edges(kernel, dilation):
  """Zeros before and after the rows and the columns of a map."""
  pads = [windows.padding(side, dilation) for side in kernel.shape[:2]]
  return [(pad, pad) for pad in pads]


IMPLEMENTATIONS: dict[str, Callable[..., jax.Array]] = {
  'auto': _fold(_auto),
  'shifts': _shifts,
  'conv': _fold(_conv),
  'channels': _fold(shift_convolution_channels.convolve),
}
