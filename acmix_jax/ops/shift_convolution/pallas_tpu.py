"""Grouped convolution of maps as two Pallas kernels for TPU.

A program takes rows of one image. Channels are in the lanes, and a tap of the
convolution is one dense product on the matrix unit: of all maps of a few groups
and weights that are zero between groups. The groups of a product are so few
that their outputs fill a register.

The pixels that a program sees lie in a frame of zeros, of 32-bit numbers: there
a slice may begin at any column, and skip some.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from acmix_jax.ops import derivatives, kernels, sharding
from acmix_jax.ops.shift_convolution import geometry, shifts, tpu_plan

_dot = kernels.dot


def why_not(problem: geometry.Problem) -> str | None:
  """Reason why the kernels cannot serve, or None."""
  reason = kernels.why_not('TPU', problem, problem.dtype)
  if reason:
    return reason
  if problem.depth % 8:
    return (
      'the kernel for TPU takes a multiple of 8 channels a map, not '
      f'{problem.depth}.'
    )
  return None


def convolve(
  problem: geometry.Problem,
  maps: Sequence[Float[Array, 'b h w _m d']],
  kernel: Float[Array, 'kh kw m f'],
  interpret: Any = False,
) -> Float[Array, 'b ho wo f']:
  """Grouped convolution of the concatenated maps, a group for each channel.

  Its first gradient is a kernel, other derivatives are those of the shifted
  maps. Several devices share the images if `jax.set_mesh` names their mesh.
  """
  return _convolve((problem, interpret), maps, kernel)


# Slow: the kernels as plain operations, for tests.
interpret = functools.partial(convolve, interpret=True)


def fill(
  frame: Any,
  refs: Sequence[Any],
  side: tpu_plan.Side,
  block: Any,
  valid: Callable[[Any, jax.Array], jax.Array] | None = None,
):
  """Copies the pixels of a block into a frame of zeros.

  Args:
    frame: Frame.
    refs: Maps.
    side: What of them is where in the frame.
    block: Number of the block.
    valid: (row, columns) -> which pixels to copy; the others are zeros. None:
      all.
  """
  height, width = side.size

  @functools.partial(kernels.repeat, side.rows)
  def _(i):
    row = block * side.block - side.margins[0] + i
    place = (row - side.first(block)).clip(0, side.span - 1)
    for sheet in range(side.shape[0]):
      frame[sheet, i] = jnp.zeros(side.shape[2:], jnp.float32)
    for number, source, sheet, target in side.pieces:
      x = refs[number][0, place, :width, source].astype(jnp.float32)
      inside = (row >= 0) & (row < height)
      if valid is not None:
        inside &= valid(row, lax.broadcasted_iota(jnp.int32, x.shape, 0))
      x = jnp.where(inside, x, 0)
      frame[sheet, i, side.left : side.left + width, target] = x


def _own(plan: tpu_plan.Plan):
  """Which outputs are of the group of an input [maps, groups, outputs]."""
  shape = sum(plan.maps), plan.groups, plan.channels[1]
  group = lax.broadcasted_iota(jnp.int32, shape, 1) * plan.outputs
  output = lax.broadcasted_iota(jnp.int32, shape, 2)
  return (output >= group) & (output < group + plan.outputs)


def spread(weights, kernel_ref, plan: tpu_plan.Plan):
  """Writes the weights [taps, m, f] with zeros between groups."""
  own = _own(plan)
  for product in plan.products:
    for tap in range(len(kernel_ref)):
      x = kernel_ref[tap, :, plan.outputs_of(product)]
      x = jnp.where(own, x.astype(jnp.float32)[:, None], 0)
      weights[product, tap] = x.reshape(plan.channels).astype(weights.dtype)


def _read(frame, plan: tpu_plan.Plan, row, column, lanes, strides=1):
  """The pixels of a product [rows * columns, lanes], any column the first."""
  place = _place(plan, row, column, strides)
  return kernels.read_frame(frame, *place, lanes).astype(plan.problem.dtype)


def _write(frame, plan: tpu_plan.Plan, row, column, lanes, strides, x):
  """The reverse of `_read`."""
  place = _place(plan, row, column, strides)
  kernels.write_frame(frame, *place, lanes, x)


def _place(plan: tpu_plan.Plan, row, column, strides):
  rows, columns = (
    pl.ds(row, plan.rows, strides),
    pl.ds(column, plan.columns, strides),
  )
  return rows, columns


def convolve_block(plan: tpu_plan.Plan, frame, weights, out_ref):
  """Writes the outputs of a block whose pixels are in a frame."""
  side, width = plan.inputs(plan.reach), plan.out_size[1]
  strides, dilation = plan.problem.strides, plan.problem.dilation
  left = side.left - plan.reach[1]

  @functools.partial(kernels.repeat, plan.turns)
  def _(turn):
    row = turn * plan.rows
    for product, lanes in enumerate(side.lanes):
      out = 0
      for tap, (y, x) in enumerate(itertools.product(*map(range, plan.taps))):
        top, first = row * strides + y * dilation, left + x * dilation
        part = _read(frame, plan, top, first, lanes, strides)
        out += _dot(part, weights[product, tap], 1, 0)
      out = out.reshape(plan.rows, plan.columns, -1)[:, :width]
      index = 0, pl.ds(row, plan.rows), pl.ds(0, width)
      out_ref[*index, plan.outputs_of(product)] = out.astype(out_ref.dtype)


def differentiate_block(
  plan: tpu_plan.Plan, x_frame, dx_frame, dout_frame, weights, dkernel_ref
):
  """Writes a frame of gradients of the maps, and adds to the kernel's."""
  inputs, gradients = plan.inputs((0, 0)), plan.gradients()
  strides = plan.problem.strides

  def differentiate(product, phase, taps, row):
    place = row * strides + phase[0], phase[1], inputs.lanes[product], strides
    x, dx = _read(x_frame, plan, *place), None
    for tap, (down, right) in taps:
      top, first = row + gradients.margins[0] + down, gradients.left + right
      dout = _read(dout_frame, plan, top, first, gradients.lanes[product])
      part = _dot(dout, weights[product, tap], 1, 1)
      dx = part if dx is None else dx + part
      dweights = _dot(x, dout, 0, 0)
      dweights = dweights.reshape(-1, plan.groups, plan.channels[1])
      dweights = jnp.where(_own(plan), dweights, 0).sum(1)
      dkernel_ref[0, tap, :, plan.outputs_of(product)] += dweights
    if dx is None:  # No output sees these pixels.
      dx = jnp.zeros(x.shape, jnp.float32)
    _write(dx_frame, plan, *place, dx)

  @functools.partial(kernels.repeat, plan.turns)
  def _(turn):
    for product in plan.products:
      for phase, taps in plan.phases():
        differentiate(product, phase, taps, turn * plan.rows)


def _is_first():
  return (pl.program_id(1) == 0) & (pl.program_id(2) == 0)


def _forward_kernel(*refs, plan: tpu_plan.Plan):
  *maps, kernel_ref, out_ref, frame, weights = refs
  pl.when(_is_first())(lambda: spread(weights, kernel_ref, plan))
  fill(frame, maps, plan.inputs(plan.reach), pl.program_id(2))
  convolve_block(plan, frame, weights, out_ref)


def _backward_kernel(*refs, plan: tpu_plan.Plan):
  count = len(plan.maps)
  maps, (kernel_ref, dout_ref), dmaps, (dkernel_ref, *scratch) = (
    refs[:count],
    refs[count : count + 2],
    refs[count + 2 : 2 * count + 2],
    refs[2 * count + 2 :],
  )
  x_frame, dx_frame, dout_frame, weights = scratch
  inputs, block = plan.inputs((0, 0)), pl.program_id(2)

  @pl.when(_is_first())
  def _():
    spread(weights, kernel_ref, plan)
    dkernel_ref[...] = jnp.zeros_like(dkernel_ref)

  fill(x_frame, maps, inputs, block)
  fill(dout_frame, [dout_ref], plan.gradients(), block)
  differentiate_block(plan, *scratch, dkernel_ref)

  @functools.partial(kernels.repeat, inputs.span)
  def _(i):
    for number, source, sheet, target in inputs.pieces:
      dx = dx_frame[sheet, i, : plan.size[1], target]
      dmaps[number][0, i, :, source] = dx.astype(dmaps[number].dtype)


def _make_plan(static, maps, kernel) -> tpu_plan.Plan:
  outputs = kernel.shape[3] // static[0].depth
  counts = tuple(x.shape[3] for x in maps)
  size = maps[0].shape[1:3]
  return tpu_plan.make_plan(static[0], counts, size, kernel.shape[:2], outputs)


def _forward(static, maps, kernel):
  plan = _make_plan(static, maps, kernel)
  side = plan.inputs(plan.reach)

  def call(maps, kernel):
    images, features = len(maps[0]), kernel.shape[3]
    [out] = kernels.call(
      functools.partial(_forward_kernel, plan=plan),
      'tpu',
      [*map(_merge_maps, maps), merge_taps(kernel)],
      [jax.ShapeDtypeStruct((images, *plan.out_size, features), kernel.dtype)],
      static[1],
      in_specs=[
        *(_halo_spec(images, side, x.shape[3:]) for x in maps),
        _whole_spec(kernel),
      ],
      out_specs=[_block_spec(images, plan.gradients(), (features,))],
      scratch_shapes=scratch(plan, [side]),
      name='shift_convolution',
      **_parameters(plan, images, products=1, maps=1, outputs=1),
    )
    return out

  return sharding.split_images(call, maps, shared=[kernel]), ()


def _backward(static, inputs, _, dout):
  maps, kernel = inputs
  plan = _make_plan(static, maps, kernel)
  side, gradients = plan.inputs((0, 0)), plan.gradients()

  def call(maps, dout, kernel):
    images = len(dout)
    merged = [_merge_maps(x) for x in maps]
    taps = merge_taps(kernel)
    parts = kernels.parts_of(images)
    blocks = [_block_spec(images, side, x.shape[3:]) for x in merged]
    *dmaps, dkernel = kernels.call(
      functools.partial(_backward_kernel, plan=plan),
      'tpu',
      [*merged, taps, dout],
      [
        *(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in merged),
        jax.ShapeDtypeStruct((parts, *taps.shape), jnp.float32),
      ],
      static[1],
      in_specs=[
        *(_halo_spec(images, side, x.shape[3:]) for x in merged),
        _whole_spec(kernel),
        _halo_spec(images, gradients, dout.shape[3:]),
      ],
      out_specs=[
        *blocks,
        pl.BlockSpec((1, *taps.shape), lambda part, *_: (part, 0, 0, 0)),
      ],
      scratch_shapes=scratch(plan, [side, side, gradients]),
      name='shift_convolution_gradients',
      **_parameters(plan, images, products=2, maps=2, outputs=1),
    )
    dmaps = [x.reshape(y.shape) for x, y in zip(dmaps, maps, strict=True)]
    return dmaps, dkernel

  dmaps, dkernel = sharding.split_images(call, maps, dout, shared=[kernel])
  dkernel = dkernel.sum(0).reshape(kernel.shape).astype(kernel.dtype)
  return type(maps)(dmaps), dkernel


_convolve = derivatives.define(
  _forward,
  _backward,
  lambda static, *inputs: shifts.convolve(static[0], *inputs),
)


def _merge_maps(x):
  return x.reshape(*x.shape[:3], -1)


def merge_taps(x: jax.Array) -> jax.Array:
  """[kh, kw, m, f] -> [kh * kw, m, f]."""
  return x.reshape(-1, *x.shape[2:])


def _image(images, part, i):
  return part * (images // kernels.parts_of(images)) + i


def _block_spec(images: int, side: tpu_plan.Side, channels):
  """The rows of a program."""
  return pl.BlockSpec(
    (1, side.block, side.size[1], *channels),
    lambda part, i, block: (_image(images, part, i), block, 0, 0),
  )


def _halo_spec(images: int, side: tpu_plan.Side, channels):
  """The rows of a program and those that it sees around them, if any.

  At the end of a map all are within it: see `tpu_plan.Side.first`.
  """
  channels = math.prod(channels)
  sizes = 1, side.span, side.size[1], channels
  return pl.BlockSpec(
    tuple(map(pl.Element, sizes)),
    lambda part, i, block: (_image(images, part, i), side.first(block), 0, 0),
  )


def _whole_spec(kernel):
  shape = merge_taps(kernel).shape
  return pl.BlockSpec(shape, lambda *_: (0, 0, 0))


def scratch(plan: tpu_plan.Plan, sides: Sequence[tpu_plan.Side]) -> list:
  """Memory for frames, and for the weights with zeros between groups."""
  frames = [pltpu.VMEM(side.shape, jnp.float32) for side in sides]
  return [*frames, pltpu.VMEM(plan.weights, plan.problem.dtype)]


def _parameters(
  plan: tpu_plan.Plan, images: int, *, products: int, maps: int, outputs: int
):
  """Grid, compiler parameters and cost of a call on so many of each."""
  parts = kernels.parts_of(images)
  return dict(
    grid=(parts, images // parts, plan.blocks),
    cost_estimate=plan.cost(images, products, maps, outputs),
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=('parallel', 'arbitrary', 'arbitrary'),
      vmem_limit_bytes=max(16 * kernels.MIB, 2 * plan.vmem_bytes),
    ),
  )
