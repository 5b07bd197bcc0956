"""The convolution path of ACmix: mix the projections, shift them, and sum.

Exact implementations behind `shift_convolution`:
  shifts: as in the paper: mixes the maps, then one weighted slice for each tap.
  grouped: both steps are linear, so the product of both weights applies at
    once, in one grouped convolution. The k * k * d mixed maps are never in
    memory.
  channels: the same product, one channel after the other.
  cpu_kernel: the same product by kernels for CPU, compiled from C++.
  auto: grouped, which moves the fewest bytes on TPU, but on CPU, where XLA has
    no fast grouped convolution (it took fifty times as long): cpu_kernel for
    float32 maps with a multiple of 16 channels d if there is a C++ compiler,
    channels for the others.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from acmix_jax.cpu_kernels import library
from acmix_jax.ops import images, windows
from acmix_jax.ops.shift_convolution import channels, cpu, grouped, shifts


def shift_convolution(
  maps: Sequence[jax.Array],
  fc_kernel: jax.Array,
  depthwise_kernel: jax.Array,
  fc_bias: jax.Array | None = None,
  *,
  valid: np.ndarray | None = None,
  strides: int = 1,
  dilation: int = 1,
  implementation: str = 'auto',
) -> jax.Array:
  """Mixes m maps into t by a dense layer, then convolves in d groups.

  Maps of a coarser grid than the first are mixed on their own grid, as the
  dense layer is of one pixel, and repeated to the first one's: each pixel
  h // h_i times along the rows, the last one until all rows are filled, and so
  along the columns.

  Source: LeapLabTHU/ACmix ResNet/test_bottleneck.py, `fc` and `dep_conv`. It
  is NCHW; its kernel is 3x3 without dilation, its padding fixed at 1; all its
  maps are of one grid. There is no bias after the convolution, as the source's
  initialisation removes the one it declares.

  Args:
    maps: the projections, each [b, h_i, w_i, m_i, d] with one map a head; m is
      the sum of the m_i. Those of the first one's grid h, w come first; the
      others share one grid.
    fc_kernel: weights of the dense layer [m, t], shared by the d channels.
    depthwise_kernel: [k, k, t, d * n]; group c // n of output channel c is
      channel c // n of the maps. `shift_kernel` is its start value.
    fc_bias: of the dense layer [t].
    valid: bool [h, w] of numpy, where the bias is added; None: everywhere.
    strides: pixels between outputs.
    dilation: pixels between neighbouring taps.
    implementation: a name of `IMPLEMENTATIONS`. `jax.export` for CPU and
      gradients of gradients there need another one than 'auto' and
      'cpu_kernel'.

  Returns:
    [b, ceil(h / strides), ceil(w / strides), d * n] in the dtype of maps.

  Raises:
    ValueError: shapes that disagree, a window that is not centred, or an
      unknown implementation.
  """
  _check_maps(maps)
  _check_weights(maps, fc_kernel, depthwise_kernel, fc_bias, valid)
  for side in depthwise_kernel.shape[:2]:
    windows.check_window('shift_convolution', side, strides, dilation)
  if implementation not in IMPLEMENTATIONS:
    raise ValueError(
      f'shift_convolution: no implementation {implementation!r}; known: '
      f'{", ".join(IMPLEMENTATIONS)}.'
    )
  dtype = maps[0].dtype
  fc_kernel, depthwise_kernel, fc_bias = jax.tree.map(
    lambda x: x.astype(dtype), (fc_kernel, depthwise_kernel, fc_bias)
  )
  size = maps[0].shape[1:3]
  fine = [x for x in maps if x.shape[1:3] == size]
  m = sum(x.shape[3] for x in fine)
  mixed = None
  if len(fine) < len(maps):
    coarse = jnp.concatenate(maps[len(fine) :], axis=3)
    mixed = _repeat(_mix([coarse], fc_kernel[m:]), *size)
    fc_kernel = fc_kernel[:m]
  if valid is None:
    valid = np.ones(size, bool)
  convolve = functools.partial(
    IMPLEMENTATIONS[implementation], strides=strides, dilation=dilation
  )
  if implementation == 'shifts':
    total = _mix(fine, fc_kernel)
    if mixed is not None:
      total = mixed + total
    if fc_bias is not None:
      total += fc_bias.reshape(1, 1, 1, -1, 1) * valid[None, :, :, None, None]
    return convolve([total], depthwise_kernel)
  # Both steps are linear: the product of their weights applies at once.
  folded = jnp.einsum('mt,yxtc->yxmc', fc_kernel, depthwise_kernel)
  out = convolve(fine, folded)
  if mixed is not None:
    # Beside the maps, in one convolution, it moved a ninth more on TPU.
    out = out + convolve([mixed], depthwise_kernel)
  if fc_bias is not None:
    taps = jnp.einsum('t,yxtc->yxc', fc_bias, depthwise_kernel)
    seen = _seen(valid, depthwise_kernel.shape[:2], strides, dilation)
    added = jnp.einsum('hwyx,yxc->hwc', seen.astype(out.dtype), taps)
    out = images.add_to_each(out, added)
  return out


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


def _check_maps(maps):
  """Raises ValueError unless there are fine maps, then maps of one grid."""
  shapes = [x.shape for x in maps]
  if not shapes or any(
    len(shape) != 5 or (shape[0], shape[4]) != (shapes[0][0], shapes[0][4])
    for shape in shapes
  ):
    raise ValueError(
      f'shift_convolution: maps {shapes}; [b, h_i, w_i, m_i, d] with the same '
      'b and d are needed.'
    )
  grids = [shape[1:3] for shape in shapes]
  fine = grids.count(grids[0])
  coarse = set(grids[fine:])
  if (
    len(coarse) > 1
    or grids[0] in coarse
    or any(h > grids[0][0] or w > grids[0][1] for h, w in coarse)
  ):
    raise ValueError(
      f'shift_convolution: maps of the grids {grids}; those of the first grid '
      'must come first, and the others share one grid that is coarser.'
    )


def _check_weights(maps, fc_kernel, depthwise_kernel, fc_bias, valid):
  """Raises ValueError unless the weights are of these maps."""
  _, h, w, _, d = maps[0].shape
  m = sum(x.shape[3] for x in maps)
  if fc_kernel.ndim != 2 or fc_kernel.shape[0] != m:
    raise ValueError(
      f'shift_convolution: fc_kernel {fc_kernel.shape}; [m, t] with m = {m} '
      'is needed.'
    )
  t = fc_kernel.shape[1]
  shape = depthwise_kernel.shape
  if len(shape) != 4 or shape[2] != t or shape[3] % d:
    raise ValueError(
      f'shift_convolution: depthwise_kernel {shape}; [k, k, t, d * n] with '
      f't = {t}, d = {d} is needed.'
    )
  for name, x, needed in (('fc_bias', fc_bias, (t,)), ('valid', valid, (h, w))):
    if x is not None and x.shape != needed:
      raise ValueError(
        f'shift_convolution: {name} {x.shape}; {needed} is needed.'
      )


def _mix(maps, fc_kernel):
  """The dense layer on maps of one grid: [b, h, w, t, d]."""
  total, first = 0, 0
  for x in maps:
    weights = fc_kernel[first : first + x.shape[3]]
    total += jnp.einsum('bhwmd,mt->bhwtd', x, weights)
    first += x.shape[3]
  return total


def _repeat(x, height: int, width: int):
  """Repeats each pixel of a map, and the last ones up to the size asked for."""
  for axis, size in ((1, height), (2, width)):
    repeats = size // x.shape[axis]
    x = jnp.expand_dims(x, axis + 1)
    shape = (*x.shape[: axis + 1], repeats, *x.shape[axis + 2 :])
    x = jnp.broadcast_to(x, shape)
    x = x.reshape(*shape[:axis], -1, *shape[axis + 2 :])
    missing = [(0, 0)] * x.ndim
    missing[axis] = (0, size - x.shape[axis])
    x = jnp.pad(x, missing, mode='edge')
  return x


def _seen(valid, kernel_size, strides, dilation):
  """Whether each tap of an output is on a valid pixel, [h', w', k, k]."""
  h, w = valid.shape
  padded = np.pad(valid, windows.edges(kernel_size, dilation))
  rows, columns = (range(0, k * dilation, dilation) for k in kernel_size)
  taps = [
    [padded[y : y + h : strides, x : x + w : strides] for x in columns]
    for y in rows
  ]
  return np.moveaxis(np.array(taps), (0, 1), (2, 3))


def _auto(maps, kernel, strides, dilation):
  on_cpu = channels.convolve
  if cpu.supports(maps, kernel) and not library.missing():
    on_cpu = cpu.convolve
  return lax.platform_dependent(
    *(list(maps), kernel),
    cpu=lambda *args: on_cpu(*args, strides, dilation),
    default=lambda *args: grouped.convolve(*args, strides, dilation),
  )


def _cpu_kernel(maps, kernel, strides, dilation):
  if not cpu.supports(maps, kernel):
    raise ValueError(
      f"shift_convolution: 'cpu_kernel' serves float32 maps with a multiple of "
      f'{library.LANES} channels, not {maps[0].dtype} with {maps[0].shape[4]}; '
      "'auto' and 'channels' do."
    )
  library.check('shift_convolution', "'auto' and 'channels'")
  return cpu.convolve(maps, kernel, strides, dilation)


IMPLEMENTATIONS: dict[str, Callable[..., jax.Array]] = {
  'auto': _auto,
  'shifts': shifts.convolve,
  'grouped': grouped.convolve,
  'channels': channels.convolve,
  'cpu_kernel': _cpu_kernel,
}
