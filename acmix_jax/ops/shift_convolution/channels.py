"""Grouped convolution of maps, one channel after the other.

What the maps of a channel send to each tap is one matrix product, shifted and
summed afterwards. A stride splits the map into phases, the pixels that the same
taps see, and each phase is sent to its taps alone. Every image lies in a frame
of zeros whose rows follow each other in memory, so that a shift in two
dimensions is one in memory; what is summed beyond the end of a row is cut off.
The loops run over channels, as images may be spread over devices.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from acmix_jax.ops import derivatives, windows, xla_cpu
from acmix_jax.ops.shift_convolution import geometry, shifts

# Channels that are moved in front of the images at a time.
_BLOCK = 4

_product = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)


@dataclasses.dataclass(frozen=True)
class _Frame:
  """The outputs of one map within zeros, and where its taps find their phase.

  Attributes:
    size: Rows and columns of the outputs.
    kernel_size: Rows and columns of taps.
    strides: Pixels between outputs.
    dilation: Pixels between neighbouring taps.
  """

  size: tuple[int, int]
  kernel_size: tuple[int, int]
  strides: int
  dilation: int

  @property
  def margins(self) -> tuple[int, int]:
    """Zeros before and after the rows and the columns."""
    rows, columns = (
      -(-windows.reach(side, self.dilation) // self.strides)
      for side in self.kernel_size
    )
    return rows, columns

  @property
  def shape(self) -> tuple[int, int]:
    """Rows and columns, with zeros."""
    rows, columns = (
      size + 2 * margin
      for size, margin in zip(self.size, self.margins, strict=True)
    )
    return rows, columns

  @property
  def span(self) -> int:
    """Pixels in memory from the first output to the last."""
    return (self.size[0] - 1) * self.shape[1] + self.size[1]

  def taps(self) -> list[tuple[int, int]]:
    """The phase of each tap, and how many pixels of memory it moves that by."""
    taps = []
    for tap in itertools.product(*map(range, self.kernel_size)):
      (row, top), (column, left) = map(self._phase, tap, self.kernel_size)
      phase = row * self.strides + column
      taps.append((phase, top * self.shape[1] + left))
    return taps

  def order(self) -> list[int]:
    """The taps, phase by phase."""
    taps = self.taps()
    return sorted(range(len(taps)), key=taps.__getitem__)

  def phases(self) -> list[tuple[int, slice, list[int]]]:
    """Each phase that has taps, their slice of `order`, and their shifts."""
    phases, first = [], 0
    for phase, taps in itertools.groupby(sorted(self.taps()), lambda x: x[0]):
      shifts = [shift for _, shift in taps]
      phases.append((phase, slice(first, first + len(shifts)), shifts))
      first += len(shifts)
    return phases

  def _phase(self, position, side):
    offset = position * self.dilation - windows.reach(side, self.dilation)
    return offset % self.strides, offset // self.strides

  def first(self, shift: int) -> int:
    """Where the span lies in memory when it is moved by `shift`."""
    rows, columns = self.margins
    return rows * self.shape[1] + columns + shift

  def enclose(self, zeros: jax.Array, x: jax.Array) -> jax.Array:
    """Writes x [..., *size] into the frame [..., *shape]."""
    return lax.dynamic_update_slice(
      zeros, x, (0,) * (x.ndim - 2) + self.margins
    )

  def split(self, maps: jax.Array) -> jax.Array:
    """Cuts maps [b, h, w, m, d] into [d, phases, m, b, *size]."""
    b, h, w, m, d = maps.shape
    (rows, columns), s = self.size, self.strides
    missing = (0, rows * s - h), (0, columns * s - w)
    x = jnp.pad(maps, ((0, 0), *missing, (0, 0), (0, 0)))
    x = x.reshape(b, rows, s, columns, s, m, d)
    return x.transpose(6, 2, 4, 5, 0, 1, 3).reshape(d, -1, m, b, rows, columns)

  def join(self, x: jax.Array, height: int, width: int) -> jax.Array:
    """The inverse of `split`, to [b, height, width, m, d]."""
    d, _, m, b, rows, columns = x.shape
    s = self.strides
    x = x.reshape(d, s, s, m, b, rows, columns).transpose(4, 5, 1, 6, 2, 3, 0)
    return x.reshape(b, rows * s, columns * s, m, d)[:, :height, :width]


def convolve(
  problem: geometry.Problem,
  maps: Sequence[Float[Array, 'b h w _m d']],
  kernel: Float[Array, 'kh kw m f'],
) -> Float[Array, 'b ho wo f']:
  """Grouped convolution of the concatenated maps, a group for each channel.

  Its first gradient is a loop like this one, other derivatives are those of
  the shifted maps.
  """
  return _convolve(problem, maps, kernel)


def _forward(problem, maps, kernel):
  frame = _make_frame(problem, maps, kernel)
  b, d, n = maps[0].shape[0], problem.depth, kernel.shape[3] // problem.depth
  block = math.gcd(d, _BLOCK)
  weights = _order_taps(frame, kernel, d)

  def convolve_block(number, y):
    x = _take(frame, maps, number * block, block)
    kernels = lax.dynamic_slice_in_dim(weights, number * block, block)
    part = _convolve_channels(frame, x, kernels).transpose(2, 3, 4, 0, 1)
    part = part.reshape(*y.shape[:3], -1)
    return lax.dynamic_update_slice_in_dim(y, part, number * block * n, axis=3)

  start = jnp.full(
    (b, *frame.size, d * n), xla_cpu.zero(*maps, kernel), kernel.dtype
  )
  return lax.fori_loop(0, d // block, convolve_block, start), ()


def _backward(problem, inputs, _, dout):
  maps, kernel = inputs
  frame = _make_frame(problem, maps, kernel)
  b, h, w, _, d = maps[0].shape
  n, block = kernel.shape[3] // d, math.gcd(d, _BLOCK)
  weights = _order_taps(frame, kernel, d)
  splits = list(itertools.accumulate(x.shape[3] for x in maps))[:-1]

  def differentiate_block(number, carry):
    maps, dweights = carry
    first = number * block
    part = lax.dynamic_slice_in_dim(dout, first * n, block * n, axis=3)
    part = part.reshape(b, *frame.size, block, n).transpose(3, 4, 0, 1, 2)
    dx, dkernels = _differentiate_channels(
      frame,
      _take(frame, maps, first, block),
      lax.dynamic_slice_in_dim(weights, first, block),
      part,
    )
    dx = jnp.split(frame.join(dx, h, w), splits, axis=3)
    maps = [
      lax.dynamic_update_slice_in_dim(whole, x, first, axis=4)
      for whole, x in zip(maps, dx, strict=True)
    ]
    dweights = lax.dynamic_update_slice_in_dim(
      dweights, dkernels, first, axis=0
    )
    return maps, dweights

  # The gradients take the place of the maps.
  start = (
    list(maps),
    jnp.full(weights.shape, xla_cpu.zero(*maps, kernel), weights.dtype),
  )
  dmaps, dweights = lax.fori_loop(0, d // block, differentiate_block, start)
  dkernel = dweights.transpose(1, 3, 0, 2)[np.argsort(frame.order())]
  return dmaps, dkernel.reshape(kernel.shape)


_convolve = derivatives.define(_forward, _backward, shifts.convolve)


def _make_frame(problem, maps, kernel):
  rows, columns = (
    windows.output_size(size, problem.strides) for size in maps[0].shape[1:3]
  )
  kernel_size = kernel.shape[:2]
  return _Frame((rows, columns), kernel_size, problem.strides, problem.dilation)


def _order_taps(frame, kernel, d):
  """Weights [d, taps in order of phases, n, m] of a kernel [k, k, m, d * n]."""
  weights = kernel.reshape(-1, kernel.shape[2], d, kernel.shape[3] // d)
  return weights[np.array(frame.order())].transpose(2, 0, 3, 1)


def _take(frame, maps, first, count):
  """Some channels of all maps, [count, phases, sum of m, b, *size]."""
  channels = (lax.dynamic_slice_in_dim(x, first, count, axis=4) for x in maps)
  return jnp.concatenate([frame.split(x) for x in channels], axis=2)


def _convolve_channels(frame, x, weights):
  """Maps x [d, phases, m, b, *size] to [d, n, b, *size]."""
  d, _, m, b, rows, columns = x.shape
  n = weights.shape[2]

  def convolve_channel(channel, carry):
    y, zeros = carry
    total = jnp.float32(0)
    for phase, taps, moves in frame.phases():
      zeros = frame.enclose(zeros, x[channel, phase])
      senders = weights[channel, taps].reshape(-1, m)
      sent = _product(senders, zeros.reshape(m, -1))
      sent = sent.reshape(len(moves), n, b, -1)
      for part, shift in zip(sent, moves, strict=True):
        first = frame.first(shift)
        total += part[:, :, first : first + frame.span]
    return y.at[channel, :, :, : frame.span].set(total.astype(y.dtype)), zeros

  full = functools.partial(jnp.full, fill_value=xla_cpu.zero(x, weights))
  start = (
    full((d, n, b, rows * frame.shape[1]), dtype=x.dtype),
    full((m, b, *frame.shape), dtype=x.dtype),
  )
  y, _ = lax.fori_loop(0, d, convolve_channel, start)
  return y.reshape(d, n, b, rows, -1)[..., :columns]


def _differentiate_channels(frame, x, weights, dout):
  """Gradients of x and of the weights from that of [d, n, b, *size]."""
  _, _, m, b, rows, columns = x.shape
  n, width = weights.shape[2], frame.shape[1]

  def differentiate_channel(channel, carry):
    dx, dweights, dout_frame, x_rows, received = carry
    dout_frame = frame.enclose(dout_frame, dout[channel])
    flat = dout_frame.reshape(n, b, -1)
    for phase, taps, moves in frame.phases():
      for tap, shift in enumerate(moves, taps.start):
        first = frame.first(-shift)
        part = flat[:, :, first : first + frame.span]
        received = received.at[tap, :, :, : frame.span].set(part)
      parts = received[taps].reshape(len(moves) * n, -1)
      dphase = _product(weights[channel, taps].reshape(-1, m).T, parts)
      dphase = dphase.reshape(m, b, rows, width)[..., :columns]
      dx = dx.at[channel, phase].set(dphase.astype(x.dtype))
      x_rows = x_rows.at[..., :columns].set(x[channel, phase])
      dtaps = _product(parts, x_rows.reshape(m, -1).T).reshape(-1, n, m)
      dweights = dweights.at[channel, taps].set(dtaps)
    return dx, dweights, dout_frame, x_rows, received

  full = functools.partial(jnp.full, fill_value=xla_cpu.zero(x, weights, dout))
  start = (
    full(x.shape, dtype=x.dtype),
    full(weights.shape, dtype=jnp.float32),
    full((n, b, *frame.shape), dtype=dout.dtype),
    full((m, b, rows, width), dtype=x.dtype),
    full((weights.shape[1], n, b, rows * width), dtype=dout.dtype),
  )
  dx, dweights, *_ = lax.fori_loop(0, len(x), differentiate_channel, start)
  return dx, dweights.astype(weights.dtype)
