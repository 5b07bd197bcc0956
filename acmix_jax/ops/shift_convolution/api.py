"""The convolution path of ACmix: mix the projections, shift them, and sum.

Exact implementations behind `shift_convolution`:
  shifts: mixes the maps, then one weighted slice for each tap.
  conv: both steps are linear, so the product of both weights applies at once,
    in one grouped convolution. The t * d mixed maps are never in memory.
  channels: the same product, one channel after the other.
  native: the same product by kernels for CPU, compiled from C++ on the spot.
  auto: conv, which moves the fewest bytes on TPU, but on CPU, where XLA has no
    fast grouped convolution (it took fifty times as long): native for float32
    maps with a multiple of 16 channels d if there is a C++ compiler, channels
    for the others.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from acmix_jax.cpu_kernels import library
from acmix_jax.ops import images, windows
from acmix_jax.ops.shift_convolution import channels, cpu

# Sums are kept in single precision.
_SUM = jnp.float32


def shift_convolution(
  maps: Sequence[jax.Array],
  mixing: jax.Array,
  kernel: jax.Array,
  bias: jax.Array | None = None,
  *,
  mixed: jax.Array | None = None,
  valid: np.ndarray | None = None,
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
    bias: of the fully connected layer [t].
    mixed: maps [b, h, w, t, d] that were mixed elsewhere, added to those.
    valid: bool [h, w] of numpy, where the bias is added; None: everywhere.
    strides: pixels between outputs.
    dilation: pixels between neighbouring taps.
    implementation: a name of `IMPLEMENTATIONS`. `jax.export` for CPU and
      gradients of gradients there need another one than 'auto' and 'native'.

  Returns:
    [b, ceil(h / strides), ceil(w / strides), d * n] in the dtype of maps.

  Raises:
    ValueError: shapes that disagree, a window that is not centred, or an
      unknown implementation.
  """
  _check(maps, mixing, kernel, strides, dilation, implementation)
  _check_mixed(maps, mixing, bias=bias, mixed=mixed, valid=valid)
  dtype = maps[0].dtype
  mixing, kernel, bias, mixed = jax.tree.map(
    lambda x: x.astype(dtype), (mixing, kernel, bias, mixed)
  )
  if valid is None:
    valid = np.ones(maps[0].shape[1:3], bool)
  convolve = IMPLEMENTATIONS[implementation]
  return convolve(maps, mixing, kernel, bias, mixed, valid, strides, dilation)


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


def _check(maps, mixing, kernel, strides, dilation, implementation):
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
  d = shapes[0][4]
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
  for side in kernel.shape[:2]:
    windows.check_window(name, side, strides, dilation)
  if implementation not in IMPLEMENTATIONS:
    raise ValueError(
      f'{name}: no implementation {implementation!r}; known: '
      f'{", ".join(IMPLEMENTATIONS)}.'
    )


def _check_mixed(maps, mixing, **given):
  b, h, w, _, d = maps[0].shape
  t = mixing.shape[1]
  wanted = {'bias': (t,), 'mixed': (b, h, w, t, d), 'valid': (h, w)}
  for name, x in given.items():
    if x is not None and x.shape != wanted[name]:
      raise ValueError(
        f'shift_convolution: {name} {x.shape}; {wanted[name]} is needed.'
      )


def _shifts(maps, mixing, kernel, bias, mixed, valid, strides, dilation):
  _, h, w, _, d = maps[0].shape
  mixed = _mix(maps, mixing, bias, mixed, valid)
  edges = _edges(kernel.shape[:2], dilation)
  mixed = jnp.pad(mixed, ((0, 0), *edges, (0, 0), (0, 0)))
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


def _mix(maps, mixing, bias, mixed, valid):
  """All mixed maps [b, h, w, t, d]."""
  total = jnp.zeros((), mixing.dtype) if mixed is None else mixed
  first = 0
  for x in maps:
    weights = mixing[first : first + x.shape[3]]
    total += jnp.einsum('bhwmd,mt->bhwtd', x, weights)
    first += x.shape[3]
  if bias is not None:
    bias = bias.reshape(1, 1, 1, -1, 1)
    total += bias * valid[None, :, :, None, None]
  return total


def _fold(convolve):
  """An implementation that convolves with the product of both weights.

  Args:
    convolve: (maps, kernel, strides, dilation), of several [b, h, w, m_i, d] by
      [k, k, sum of m_i, d * n].
  """

  def fold(maps, mixing, kernel, bias, mixed, valid, strides, dilation):
    folded = jnp.einsum('mt,yxtc->yxmc', mixing, kernel)
    out = convolve(maps, folded, strides, dilation)
    if mixed is not None:
      # Beside the maps, in one convolution, it moved a ninth more on TPU.
      out = out + convolve([mixed], kernel, strides, dilation)
    if bias is not None:
      taps = jnp.einsum('t,yxtc->yxc', bias, kernel)
      seen = _seen(valid, kernel.shape[:2], strides, dilation)
      added = jnp.einsum('hwyx,yxc->hwc', seen.astype(out.dtype), taps)
      out = images.add_to_each(out, added)
    return out

  return fold


def _seen(valid, kernel_size, strides, dilation):
  """Whether each tap of an output is on a valid pixel, [h', w', k, k]."""
  h, w = valid.shape
  padded = np.pad(valid, _edges(kernel_size, dilation))
  rows, columns = (range(0, k * dilation, dilation) for k in kernel_size)
  taps = [
    [padded[y : y + h : strides, x : x + w : strides] for x in columns]
    for y in rows
  ]
  return np.moveaxis(np.array(taps), (0, 1), (2, 3))


def _conv(maps, kernel, strides, dilation):
  b, h, w, _, d = maps[0].shape
  x = jnp.concatenate(maps, axis=3).swapaxes(3, 4)
  return lax.conv_general_dilated(
    x.reshape(b, h, w, -1),
    kernel,
    window_strides=(strides, strides),
    padding=_edges(kernel.shape[:2], dilation),
    rhs_dilation=(dilation, dilation),
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    feature_group_count=d,
  )


def _auto(maps, kernel, strides, dilation):
  on_cpu = channels.convolve
  if cpu.supports(maps, kernel) and not library.missing():
    on_cpu = cpu.convolve
  return lax.platform_dependent(
    *(list(maps), kernel),
    cpu=lambda *args: on_cpu(*args, strides, dilation),
    default=lambda *args: _conv(*args, strides, dilation),
  )


def _native(maps, kernel, strides, dilation):
  if not cpu.supports(maps, kernel):
    raise ValueError(
      f"shift_convolution: 'native' serves float32 maps with a multiple of "
      f'{library.LANES} channels, not {maps[0].dtype} with {maps[0].shape[4]}; '
      "'auto' and 'channels' do."
    )
  library.check('shift_convolution', "'auto' and 'channels'")
  return cpu.convolve(maps, kernel, strides, dilation)


def _edges(kernel_size, dilation):
  """Zeros before and after the rows and the columns of a map."""
  pads = [windows.padding(side, dilation) for side in kernel_size]
  return [(pad, pad) for pad in pads]


IMPLEMENTATIONS: dict[str, Callable[..., jax.Array]] = {
  'auto': _fold(_auto),
  'shifts': _shifts,
  'conv': _fold(_conv),
  'channels': _fold(channels.convolve),
  'native': _fold(_native),
}
