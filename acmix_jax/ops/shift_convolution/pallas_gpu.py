"""Grouped convolution of maps as Pallas kernels for GPU (Triton).

A group has too few channels for a matrix unit: products are of single numbers,
in float32. A program takes some pixels; what their taps see stays in the cache,
the sums stay in registers. The gradient of the maps is the same function of
that of the outputs, with the kernel mirrored. That of the kernel is summed over
the pixels of a program, then over programs.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float

from acmix_jax.ops import derivatives, kernels, sharding, windows
from acmix_jax.ops.shift_convolution import geometry, gpu_plan, shifts


class _Tile(NamedTuple):
  """Some channels of some output pixels.

  Attributes:
    plan: Sizes.
    pixel: Number of each pixel among those of all images.
    exist: Whether it exists.
    block: Number of the block of channels.
  """

  plan: gpu_plan.Plan
  pixel: jax.Array
  exist: jax.Array
  block: Any

  @property
  def lane(self) -> jax.Array:
    """Number of each channel in maps that lie side by side."""
    lane = jnp.arange(self.plan.lanes, dtype=jnp.int32)
    return self.block * self.plan.channels + lane

  @property
  def inside(self) -> jax.Array | None:
    """Whether these maps have each channel; None: all."""
    return self.lane < self.plan.width if self.plan.padded else None

  def mask(self, exist) -> jax.Array:
    """Whether there is each channel of pixels [pixels, lanes]."""
    inside = True if self.inside is None else self.inside[None]
    return exist[:, None] & inside

  def source(self, tap) -> tuple[jax.Array, jax.Array]:
    """Number of the input pixel under a tap, and whether it exists."""
    plan, place = self.plan, []
    index, exist = self.pixel, self.exist
    for size in reversed(plan.outputs):
      index, line = _divide(index, size)
      place.insert(0, line)
    for axis, size in enumerate(plan.inputs):
      offset = (tap[axis] - plan.taps[axis] // 2) * plan.dilation
      line = place[axis] * plan.up + offset
      exist &= (line >= 0) & (line < size * plan.down)
      line, rest = _divide(line, plan.down)
      index, exist = index * size + line, exist & (rest == 0)
    return index, exist


def _divide(number, by: int):
  """Quotient and remainder."""
  if by == 1:
    return number, 0
  return lax.div(number, np.int32(by)), lax.rem(number, np.int32(by))


def _fold(count: int, body, state):
  """Folds body(number, state)."""
  if count == 1:
    return body(0, state)
  return lax.fori_loop(np.int32(0), np.int32(count), body, state)


def _outputs(plan: gpu_plan.Plan, group):
  return [group * plan.group + i for i in range(plan.group)]


def _convolve_kernel(*refs, plan: gpu_plan.Plan):
  """Maps [pixels, m * d] and a kernel [taps, n, m * d] to [pixels, n, d]."""
  *maps, kernel_ref, out_ref = refs
  group, block = _divide(pl.program_id(1), plan.blocks)
  pixel = jnp.arange(plan.pixels, dtype=jnp.int32)
  pixel += pl.program_id(0) * plan.pixels
  tile = _Tile(plan, pixel, pixel < out_ref.shape[0], block)

  def add_maps(sums, ref, before):
    """Adds the maps of `ref`; their weights are after so many others."""

    def add(number, sums):
      heads, step = _divide(number, plan.steps)
      lane = heads * plan.width + tile.lane
      for tap in plan.step(step):
        index, exist = tile.source(tap)
        x = _load(ref.at[index[:, None], lane[None]], tile.mask(exist))
        weights = [
          _load(kernel_ref.at[_row(plan, tap), i, before + lane], tile.inside)
          for i in _outputs(plan, group)
        ]
        sums = [a + x * b[None] for a, b in zip(sums, weights, strict=True)]
      return sums

    return _fold(ref.shape[1] // plan.width * plan.steps, add, sums)

  sums = [jnp.zeros((plan.pixels, plan.lanes), jnp.float32)] * plan.group
  before = 0
  for ref in maps:
    sums = add_maps(sums, ref, before)
    before += ref.shape[1]
  one = tile._replace(plan=plan._replace(heads=1))
  for i, total in zip(_outputs(plan, group), sums, strict=True):
    if plan.heads > 1:
      total = total.reshape(plan.pixels, plan.heads, -1).sum(1)
    at = out_ref.at[pixel[:, None], i, one.lane[None]]
    triton.store(at, total.astype(out_ref.dtype), mask=one.mask(one.exist))


def _load(at, mask):
  """Numbers in float32, 0 where the mask is."""
  other = None if mask is None else 0
  return triton.load(at, mask=mask, other=other).astype(jnp.float32)


def _row(plan, tap):
  return tap[0] * plan.taps[1] + tap[1]


def _kernel_gradient_kernel(x_ref, dout_ref, out_ref, *, plan: gpu_plan.Plan):
  """Maps [pixels, m * d], [pixels, n, d] to [parts, taps, n, m * d]."""
  part, each = pl.program_id(0), pl.cdiv(dout_ref.shape[0], out_ref.shape[0])
  end = jnp.minimum((part + 1) * each, dout_ref.shape[0])
  heads, block = _divide(pl.program_id(1), plan.blocks)
  group, step = _divide(pl.program_id(2), plan.steps)
  taps, outputs = plan.step(step), _outputs(plan, group)

  def tile_of(turn):
    pixel = jnp.arange(plan.pixels, dtype=jnp.int32)
    pixel += part * each + turn * plan.pixels
    return _Tile(plan, pixel, pixel < end, block)

  lane = heads * plan.width + tile_of(0).lane
  _, own = _divide(tile_of(0).lane, plan.depth)

  def load(turn):
    tile = tile_of(turn)
    x, dout = [], []
    for tap in taps:
      index, exist = tile.source(tap)
      x.append(_load(x_ref.at[index[:, None], lane[None]], tile.mask(exist)))
    mask = tile.mask(tile.exist)
    for i in outputs:
      at = dout_ref.at[tile.pixel[:, None], i, own[None]]
      dout.append(_load(at, mask))
    return x, dout

  def add(turn, sums):
    pairs = itertools.product(*load(turn))
    return [total + x * y for total, (x, y) in zip(sums, pairs, strict=True)]

  zeros = jnp.zeros((plan.pixels, plan.lanes), jnp.float32)
  start = [zeros] * len(taps) * len(outputs)
  sums = _fold(pl.cdiv(each, plan.pixels), add, start)
  inside = tile_of(0).inside
  for (tap, i), total in zip(
    itertools.product(taps, outputs), sums, strict=True
  ):
    at = out_ref.at[part, _row(plan, tap), i, lane]
    triton.store(at, total.sum(0), mask=inside)


def why_not(problem: geometry.Problem) -> str | None:
  """Reason why the kernels cannot serve, or None."""
  return kernels.why_not('GPU', problem, problem.dtype)


def convolve(
  problem: geometry.Problem,
  maps: Sequence[Float[Array, 'b h w _m d']],
  kernel: Float[Array, 'kh kw m f'],
  interpret: Any = False,
) -> Float[Array, 'b ho wo f']:
  """Grouped convolution of the concatenated maps, a group for each channel.

  Its first gradient is by kernels, other derivatives are those of the shifted
  maps. Several devices share the images if `jax.set_mesh` names their mesh.
  """
  return _convolve((problem, interpret), maps, kernel)


def _forward(static, maps, kernel):
  problem, _ = static
  weights = _split_channels(kernel, problem.depth).swapaxes(2, 3)

  def call(maps, weights):
    size = maps[0].shape[1:3]
    size = tuple(windows.output_size(x, problem.strides) for x in size)
    return _run(static, maps, weights, size)

  out = sharding.split_images(call, maps, shared=[weights])
  return _join_channels(out), ()


def _backward(static, inputs, _, dout):
  problem, _ = static
  maps, kernel = inputs
  dout = _split_channels(dout, problem.depth)
  weights = _split_channels(kernel, problem.depth)[::-1, ::-1]
  ends = list(itertools.accumulate(x.shape[3] for x in maps))

  def call(maps, dout, weights):
    parts = jnp.split(weights, ends[:-1], axis=2)
    dmaps = [
      _run(static, [dout], part, x.shape[1:3], transpose=True).astype(x.dtype)
      for x, part in zip(maps, parts, strict=True)
    ]
    taps = kernel.shape[:2]
    return dmaps, [_differentiate_kernel(static, x, dout, taps) for x in maps]

  dmaps, parts = sharding.split_images(call, maps, dout, shared=[weights])
  dkernel = jnp.concatenate([x.sum(0) for x in parts], axis=2)
  dkernel = dkernel.reshape(*kernel.shape[:2], *dkernel.shape[1:])
  dkernel = _join_channels(dkernel.swapaxes(2, 3)).astype(kernel.dtype)
  return type(maps)(dmaps), dkernel


_convolve = derivatives.define(
  _forward,
  _backward,
  lambda static, *inputs: shifts.convolve(static[0], *inputs),
)


def _run(static, maps, weights, size, *, transpose=False):
  """Convolves maps [b, h, w, _m, d] by weights [kh, kw, n, m, d].

  Returns:
    Outputs [b, *size, n, d].
  """
  taps, (n, m, d) = weights.shape[:2], weights.shape[2:]
  plan = gpu_plan.make_plan(
    static[0],
    taps,
    (maps[0].shape[1:3], size),
    math.gcd(*(x.shape[3] for x in maps)),
    n,
    transpose=transpose,
  )
  pixels = len(maps[0]) * math.prod(size)
  [out] = _call(
    _convolve_kernel,
    plan,
    [*map(_merge, maps), weights.reshape(-1, n, m * d).astype(jnp.float32)],
    jax.ShapeDtypeStruct((pixels, n, d), maps[0].dtype),
    (pl.cdiv(pixels, plan.pixels), plan.blocks * (n // plan.group)),
    static[1],
  )
  return out.reshape(-1, *size, n, d)


def _differentiate_kernel(static, x, dout, taps):
  """Sums over parts of the images [parts, taps, n, m, d]."""
  m, n, d = x.shape[3], *dout.shape[3:]
  sizes = x.shape[1:3], dout.shape[1:3]
  plan = gpu_plan.make_plan(static[0], taps, sizes, m, n, for_kernel=True)
  pixels = math.prod(dout.shape[:3])
  grid = m // plan.heads * plan.blocks, n // plan.group * plan.steps
  parts = plan.parts(pixels, math.prod(grid))
  [out] = _call(
    _kernel_gradient_kernel,
    plan,
    [_merge(x), dout.reshape(pixels, n, d)],
    jax.ShapeDtypeStruct((parts, math.prod(taps), n, m * d), jnp.float32),
    (parts, *grid),
    static[1],
  )
  return out.reshape(*out.shape[:3], m, d)


def _call(kernel, plan, inputs, output, grid, interpret):
  return kernels.call(
    functools.partial(kernel, plan=plan),
    'cuda',
    inputs,
    [output],
    interpret,
    grid=grid,
    compiler_params=triton.CompilerParams(
      num_warps=gpu_plan.WARPS, num_stages=1
    ),
    name='shift_convolution' + kernel.__name__,
  )


def _merge(x):
  """[b, h, w, m, d] -> [b * h * w, m * d]."""
  return x.reshape(math.prod(x.shape[:3]), -1)


def _split_channels(x, d):
  """[..., d * n] -> [..., n, d]."""
  return x.reshape(*x.shape[:-1], d, -1).swapaxes(-1, -2)


def _join_channels(x):
  """[..., n, d] -> [..., d * n]."""
  return x.swapaxes(-1, -2).reshape(*x.shape[:-2], -1)
