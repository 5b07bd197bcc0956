"""The convolution path of ACmix: mix the projections, shift them, and sum."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32

from acmix_jax.ops import implementations, windows, xla_cpu
from acmix_jax.ops.shift_convolution import (
  channels,
  cpu,
  geometry,
  grouped,
  pallas_gpu,
  pallas_tpu,
  shifts,
)

# In order of preference. All but 'shifts' are given the product of both
# weights, so that the k * k * d mixed maps are never in memory.
IMPLEMENTATIONS = (
  # A fused kernel, which reads each map once.
  implementations.Implementation(
    'pallas', ('tpu',), pallas_tpu.why_not, pallas_tpu.convolve
  ),
  # Kernels whose sums stay in registers. On one H200, for 64 images of 56x56x64
  # in bfloat16 and their gradients: at most 1.2 ms, where 'grouped' took 2.4.
  implementations.Implementation(
    'pallas', ('cuda',), pallas_gpu.why_not, pallas_gpu.convolve
  ),
  # Kernels in C++, once `acmix_jax.cpu_kernels` are enabled.
  implementations.Implementation(
    'cpu_kernel', ('cpu',), cpu.why_not, cpu.convolve
  ),
  # One channel after the other.
  implementations.Implementation(
    'channels', ('cpu',), implementations.always, channels.convolve
  ),
  # One convolution of XLA's.
  implementations.Implementation(
    'grouped',
    implementations.PLATFORMS,
    implementations.always,
    grouped.convolve,
  ),
  implementations.Implementation(
    'channels',
    implementations.PLATFORMS,
    implementations.always,
    channels.convolve,
  ),
  # As in the paper: mixes the maps, then one weighted slice for each tap.
  implementations.Implementation(
    'shifts', implementations.PLATFORMS, implementations.always, shifts.convolve
  ),
  implementations.Implementation(
    'pallas', ('cpu', 'rocm'), pallas_tpu.why_not, pallas_tpu.interpret
  ),
)


def shift_convolution(
  maps: Sequence[Float[Array, 'b _h _w _m d']],
  fc_kernel: Float[Array | np.ndarray, 'm t'],
  depthwise_kernel: Float[Array | np.ndarray, 'kh kw t f'],
  fc_bias: Float[Array | np.ndarray, ' t'] | None = None,
  *,
  valid: Bool[np.ndarray, 'h w'] | None = None,
  strides: int = 1,
  dilation: int = 1,
  implementation: str = 'auto',
) -> Float[Array, 'b ho wo f']:
  """Mixes m maps into t by a fully connected layer, then convolves d groups.

  Maps of a coarser grid than the first are mixed on their own grid, as the
  fully connected layer sees one pixel, and repeated to the grid of the first:
  of h' rows each is repeated h // h' times, the last one until all h rows are
  filled; columns likewise.

  Source: LeapLabTHU/ACmix ResNet/test_bottleneck.py, `fc` and `dep_conv`. It
  is NCHW, its kernel 3x3 without dilation, its padding fixed at 1, and all its
  maps are of one grid. There is no bias after the convolution, as the source's
  initialisation removes the one it declares.

  Args:
    maps: Projections with one map a head, m maps in all. Those of the first
      one's grid come first; the others share one grid.
    fc_kernel: Weights of the fully connected layer, shared by the d channels.
    depthwise_kernel: Weights of d groups with n = f / d outputs each: output
      channel c reads channel c // n of the maps. `shift_kernel` is its start
      value.
    fc_bias: Bias of the fully connected layer.
    valid: Where the bias is added, on the first one's grid; None: everywhere.
    strides: Pixels between outputs.
    dilation: Pixels between neighbouring taps.
    implementation: 'auto', or a name of `IMPLEMENTATIONS`; all compute the
      same numbers up to rounding. Other derivatives than the first gradient
      are those of 'shifts' where an implementation has its own.

  Returns:
    The convolved maps in the dtype of the first.

  Raises:
    ValueError: Shapes disagree, a window is not centred, or the implementation
      is unknown or cannot serve.
  """
  _check_maps(maps)
  _check_weights(maps, fc_kernel, depthwise_kernel, fc_bias, valid)
  for side in depthwise_kernel.shape[:2]:
    windows.check_window('shift_convolution', side, strides, dilation)
  weights = _Weights.make(
    fc_kernel, depthwise_kernel, fc_bias, valid, like=maps[0]
  )
  convolve = functools.partial(_convolve, strides, dilation, implementation)
  if implementation == 'shifts':
    return convolve([_mix_all(maps, weights)], weights.depthwise_kernel)
  out = _convolve_folded(convolve, maps, weights)
  if weights.fc_bias is None:
    return out
  return xla_cpu.add_to_each(out, weights.bias(strides, dilation))


class _Weights(NamedTuple):
  """See `shift_convolution`."""

  fc_kernel: jax.Array
  depthwise_kernel: jax.Array
  fc_bias: jax.Array | None
  valid: np.ndarray

  @classmethod
  def make(cls, fc_kernel, depthwise_kernel, fc_bias, valid, *, like):
    """The weights in the dtype of a map, on whose grid `valid` is."""
    arrays = jax.tree.map(
      lambda x: jnp.asarray(x, like.dtype),
      (fc_kernel, depthwise_kernel, fc_bias),
    )
    if valid is None:
      valid = np.ones(like.shape[1:3], bool)
    return cls(*arrays, valid)

  def bias(self, strides, dilation):
    """What the bias adds to each output."""
    _, depthwise_kernel, fc_bias, valid = self
    return convolve_bias(fc_bias, depthwise_kernel, valid, strides, dilation)


def convolve_bias(
  fc_bias: Float[Array | np.ndarray, ' t'],
  depthwise_kernel: Float[Array | np.ndarray, 'kh kw t f'],
  valid: Bool[np.ndarray, 'h w'],
  strides: int = 1,
  dilation: int = 1,
) -> Float[Array, 'ho wo f']:
  """What the bias of the valid pixels adds to each output.

  Args: those of `shift_convolution`.
  """
  h, w = valid.shape
  rows, columns, *_ = depthwise_kernel.shape
  padded = np.pad(valid, windows.same_padding((rows, columns), dilation))
  # Whether each tap of an output is on a valid pixel, [k, k, h', w'].
  seen = np.array(
    [
      [
        padded[y : y + h : strides, x : x + w : strides]
        for x in range(0, columns * dilation, dilation)
      ]
      for y in range(0, rows * dilation, dilation)
    ]
  )
  taps = jnp.einsum('t,yxtc->yxc', fc_bias, depthwise_kernel)
  return jnp.einsum('yxhw,yxc->hwc', seen.astype(taps.dtype), taps)


def shift_kernel(
  kernel_size: int, features: int
) -> Float32[Array, 'kh kw t f']:
  """The start value of the kernel: map t is moved by the t-th of k*k shifts.

  Args:
    kernel_size: Odd side k.
    features: Output channels; all get the same shifts.

  Returns:
    Weights that are one where t == k * row + column, and zero elsewhere.
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


def _convolve(strides, dilation, implementation, maps, kernel):
  problem = geometry.describe(maps, kernel, strides, dilation)
  return implementations.run(
    IMPLEMENTATIONS, 'shift_convolution', implementation, problem, maps, kernel
  )


def _convolve_folded(convolve, maps, weights):
  """Both steps in one, but for their bias.

  They are linear, so the product of their weights applies at once.
  """
  fine, fine_kernel, mixed = _split(maps, weights.fc_kernel)
  folded = jnp.einsum('mt,yxtc->yxmc', fine_kernel, weights.depthwise_kernel)
  out = convolve(fine, folded)
  if len(fine) < len(maps):
    # Beside the maps, in one convolution, it moved a ninth more bytes on TPU.
    out = out + convolve([mixed], weights.depthwise_kernel)
  return out


def _mix_all(maps, weights):
  """All maps mixed [b, h, w, t, d], with the bias of the valid pixels."""
  fine, fine_kernel, mixed = _split(maps, weights.fc_kernel)
  mixed = mixed + _mix(fine, fine_kernel)
  if weights.fc_bias is not None:
    bias = weights.fc_bias.reshape(1, 1, 1, -1, 1)
    mixed += bias * weights.valid[None, :, :, None, None]
  return mixed


def _split(maps, fc_kernel):
  """The maps of the first one's grid, their weights, and the others mixed."""
  fine = [x for x in maps if x.shape[1:3] == maps[0].shape[1:3]]
  mixed = _mix_coarse(maps, len(fine), fc_kernel)
  return fine, fc_kernel[: sum(x.shape[3] for x in fine)], mixed


def _mix(maps, fc_kernel):
  """The dense layer on maps of one grid: [b, h, w, t, d]."""
  total, first = 0, 0
  for x in maps:
    weights = fc_kernel[first : first + x.shape[3]]
    total += jnp.einsum('bhwmd,mt->bhwtd', x, weights)
    first += x.shape[3]
  return total


def _mix_coarse(maps, fine, fc_kernel):
  """The coarse maps mixed and repeated [b, h, w, t, d]; 0 without any."""
  if fine == len(maps):
    return 0
  coarse = jnp.concatenate(maps[fine:], axis=3)
  mixed = _mix([coarse], fc_kernel[-coarse.shape[3] :])
  return _repeat(mixed, *maps[0].shape[1:3])


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
