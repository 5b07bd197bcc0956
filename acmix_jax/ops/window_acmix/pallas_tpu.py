"""A layer of ACmix on window attention as two Pallas kernels for TPU.

A program takes an image. It projects the queries, keys and values on the chip,
which they never leave: the backward kernel projects them again, and attends
again for the gradient of the output projection. What is between are the kernels
of `shifted_windows`, for one row of windows after the other, and of
`shift_convolution`.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from acmix_jax.ops import derivatives, kernels, sharding, tpu_projection
from acmix_jax.ops.shift_convolution import pallas_tpu as convolution_kernel
from acmix_jax.ops.shift_convolution import shifts
from acmix_jax.ops.shifted_windows import pallas_tpu as window_kernel
from acmix_jax.ops.shifted_windows import plain
from acmix_jax.ops.window_acmix import geometry, tpu_plan

# The only block of an image.
_BLOCK = np.int32(0)


def why_not(problem: geometry.Problem) -> str | None:
  """Reason why the kernels cannot serve, or None."""
  reason = window_kernel.why_not(problem.attention)
  reason = reason or convolution_kernel.why_not(problem.convolution)
  if reason:
    return reason
  return kernels.too_large(
    tpu_plan.make_plan(problem), problem.attention.padded
  )


def combine(
  problem: geometry.Problem, *arrays: jax.Array, interpret: Any = False
) -> Float[Array, 'b h w f']:
  """The sum of both paths, of the arrays of `window_acmix` in their order.

  Its first gradient is a kernel, other derivatives are those of plain forms.
  """
  return _combine((problem, interpret), *arrays)


# Slow: the kernels as plain operations, for tests.
interpret = functools.partial(combine, interpret=True)


class _Inputs(NamedTuple):
  """References to the inputs of both kernels, in their order.

  The backward kernel is given the gradient of the output, too.

  Attributes:
    projection: Weights of queries, keys and values.
    bias: Their biases.
    window_bias: This one and the next: see `window_kernel.Constants`.
    masks: See there.
    out_kernel: Weights of the output projection.
    taps: Weights of the convolution.
    offset: Added to each image.
    index: See `window_kernel.Constants`.
    x: Image.
  """

  projection: Any
  bias: Any
  window_bias: Any
  masks: Any
  out_kernel: Any
  taps: Any
  offset: Any
  index: Any
  x: Any

  @property
  def constants(self) -> window_kernel.Constants:
    """What the attention adds to logits."""
    return window_kernel.Constants(self.window_bias, self.masks, self.index)


_COUNT = len(_Inputs._fields)


def _valid(plan: tpu_plan.Plan, row, columns):
  """Whether pixels are not padding."""
  problem, inside = plan.attention.problem, True
  lines = zip((row, columns), problem.padded, plan.size, strict=True)
  for line, padded, size in lines:
    line = line + problem.shift
    inside &= jnp.where(line < padded, line, line - padded) < size
  return inside


def _for_each_row(plan: tpu_plan.Plan, body):
  """Calls body(row of windows, its first row of pixels)."""
  problem = plan.attention.problem

  @functools.partial(kernels.repeat, problem.windows[0])
  def _(number):
    row = window_kernel.Row(plan.attention, number)
    body(row, number * problem.window_size)


def _forward_kernel(*refs, plan: tpu_plan.Plan):
  inputs, (out_ref, *refs) = _Inputs(*refs[:_COUNT]), refs[_COUNT:]
  maps, (attended, out, *frames, frame, weights) = refs[:3], refs[3:]
  convolution = plan.convolution

  @pl.when(pl.program_id(1) == 0)
  def _():
    convolution_kernel.spread(weights, inputs.taps, convolution)

  tpu_projection.project(
    plan.slabs, inputs.x, inputs.projection, inputs.bias, maps
  )
  side = convolution.inputs(convolution.reach)
  valid = functools.partial(_valid, plan)
  convolution_kernel.fill(frame, maps, side, _BLOCK, valid)
  convolution_kernel.convolve_block(convolution, frame, weights, out)

  def attend(row, first):
    for window_frame, ref in zip(frames, maps, strict=True):
      row.fill(window_frame, ref, first)
    row.attend(inputs.constants, frames)
    row.store(frames[0], attended, first)

  _for_each_row(plan, attend)

  def project(slab):
    y = kernels.dot(slab.read(attended), inputs.out_kernel[...], 1, 0)
    slab.write(out_ref, y + slab.read(out) + slab.read(inputs.offset))

  plan.slabs.for_each(project)


def _backward_kernel(*refs, plan: tpu_plan.Plan):
  inputs, (dout_ref, dx_ref, *refs) = _Inputs(*refs[:_COUNT]), refs[_COUNT:]
  results, refs = refs[:6], refs[6:]
  dprojection, dbias, dtaps, dwindow_bias, dout_kernel, doffset = results
  maps, dmaps, (attended, dattended) = refs[:3], refs[3:6], refs[6:8]
  frames, (x, dx, dout, weights) = refs[8:12], refs[12:]
  convolution = plan.convolution

  @pl.when(pl.program_id(1) == 0)
  def _():
    convolution_kernel.spread(weights, inputs.taps, convolution)
    kernels.clear(results)

  tpu_projection.project(
    plan.slabs, inputs.x, inputs.projection, inputs.bias, maps
  )
  side = convolution.inputs((0, 0))
  valid = functools.partial(_valid, plan)
  convolution_kernel.fill(x, maps, side, _BLOCK, valid)
  convolution_kernel.fill(dout, [dout_ref], convolution.gradients(), _BLOCK)
  convolution_kernel.differentiate_block(
    convolution, x, dx, dout, weights, dtaps
  )

  def project_back(slab):
    y = slab.read(dout_ref)
    slab.write(dattended, kernels.dot(y, inputs.out_kernel[...], 1, 1))

  plan.slabs.for_each(project_back)

  def differentiate(row, first):
    for frame, ref in zip(frames, (*maps, dattended), strict=True):
      row.fill(frame, ref, first)
    row.differentiate(
      inputs.constants, frames, dwindow_bias, recompute_outputs=True
    )
    for frame, ref in zip(frames, (*dmaps, attended), strict=True):
      row.store(frame, ref, first)

  _for_each_row(plan, differentiate)

  def differentiate_output(slab):
    y = slab.read(dout_ref)
    dout_kernel[0] += kernels.dot(slab.read(attended), y, 0, 0)
    slab.add(doffset, y)

  plan.slabs.for_each(differentiate_output)
  _add_convolution(plan, dmaps, dx)
  tpu_projection.differentiate(
    *(plan.slabs, inputs.x, inputs.projection, dmaps),
    *(dx_ref, dprojection, dbias),
  )


def _add_convolution(plan: tpu_plan.Plan, dmaps, dx):
  """Adds the gradients of the convolution to those of the attention."""
  side = plan.convolution.inputs((0, 0))
  height, width = side.size

  @functools.partial(kernels.repeat, height)
  def _(i):
    for number, source, sheet, target in side.pieces:
      ref = dmaps[number]
      total, convolved = ref[0, i, :width, source], dx[sheet, i, :width, target]
      column = lax.broadcasted_iota(jnp.int32, total.shape, 0)
      total = total.astype(jnp.float32)
      total += jnp.where(_valid(plan, i, column), convolved, 0)
      ref[0, i, :width, source] = total.astype(ref.dtype)


def _forward(static, x, *shared):
  plan = tpu_plan.make_plan(static[0])
  side = plan.convolution.inputs(plan.convolution.reach)

  def call(x, *shared):
    [out] = kernels.call_images(
      _forward_kernel,
      *(plan, static[1]),
      *_constants(plan, *shared),
      images=[x],
      output=(*x.shape[1:3], plan.attention.channels),
      blocks=[plan.input, plan.shape],
      sums=[],
      scratch_shapes=[
        *[pltpu.VMEM((1, *plan.shape), x.dtype)] * 4,
        pltpu.VMEM((1, *plan.shape), jnp.float32),
        *[pltpu.VMEM(plan.attention.frame, jnp.float32)] * 3,
        *convolution_kernel.scratch(plan.convolution, [side]),
      ],
      cost_estimate=plan.cost(
        len(x), inputs=1, outputs=1, products=(1, 2, 1, 1)
      ),
      name='window_acmix',
    )
    return out

  return sharding.split_images(call, x, shared=shared), ()


def _backward(static, inputs, _, dout):
  plan = tpu_plan.make_plan(static[0])
  x, projection, bias, _, out_kernel, kernel, offset = inputs
  tokens = plan.attention.tokens
  taps = math.prod(kernel.shape[:2]), *kernel.shape[2:]

  def call(x, dout, *shared):
    return kernels.call_images(
      _backward_kernel,
      *(plan, static[1]),
      *_constants(plan, *shared),
      images=[x, dout],
      output=x.shape[1:],
      blocks=[plan.input, plan.shape, plan.input],
      sums=[
        (3, plan.channels, plan.attention.channels),
        (3, plan.attention.channels),
        taps,
        (plan.attention.problem.heads, tokens, tokens),
        out_kernel.shape,
        plan.shape,
      ],
      scratch_shapes=[
        *[pltpu.VMEM((1, *plan.shape), x.dtype)] * 8,
        *[pltpu.VMEM(plan.attention.frame, jnp.float32)] * 4,
        *[pltpu.VMEM(shape, jnp.float32) for shape in plan.frames],
        pltpu.VMEM(plan.convolution.weights, kernel.dtype),
      ],
      cost_estimate=plan.cost(
        len(x), inputs=2, outputs=1, products=(3, 6, 2, 2)
      ),
      name='window_acmix_gradients',
    )

  dx, *sums = sharding.split_images(call, x, dout, shared=inputs[1:])
  dprojection, dbias, dtaps, dwindow_bias, dout_kernel, doffset = (
    x.sum(0) for x in sums
  )
  height, width, _ = offset.shape
  return (
    dx,
    _join(dprojection).astype(projection.dtype),
    dbias.reshape(bias.shape).astype(bias.dtype),
    plan.attention.cut_bias(dwindow_bias),
    dout_kernel.astype(out_kernel.dtype),
    dtaps.reshape(kernel.shape).astype(kernel.dtype),
    doffset[:height, :width].astype(offset.dtype),
  )


def _general(
  static, x, projection, bias, window_bias, out_kernel, kernel, offset
):
  problem = static[0]
  attention, convolution, *_ = problem
  maps = x @ projection + bias[None, None, None]
  maps = maps.reshape(*x.shape[:3], -1, attention.depth)
  attended = plain.attend(attention, maps, window_bias)
  if problem.valid is not None:
    maps = jnp.where(problem.valid[None, :, :, None, None], maps, 0)
  convolved = shifts.convolve(convolution, [maps], kernel)
  attended = attended.reshape(convolved.shape)
  return attended @ out_kernel + convolved + offset[None].astype(x.dtype)


def _constants(plan, projection, bias, window_bias, out_kernel, kernel, offset):
  """Arrays, and numbers, that all programs get."""
  masks, index = plan.attention.masks()
  constants = [
    _split(projection),
    _split(bias),
    plan.attention.pad_bias(window_bias),
    jnp.asarray(masks),
    out_kernel,
    convolution_kernel.merge_taps(kernel),
    _pad(offset.astype(jnp.float32), plan.shape)[None],
  ]
  return constants, jnp.asarray(index)


_combine = derivatives.define(_forward, _backward, _general)


def _split(x):
  """[..., 3 * f] -> [3, ..., f]."""
  return jnp.stack(jnp.split(x, 3, axis=-1))


def _join(x):
  """The reverse of `_split`."""
  return jnp.concatenate(list(x), axis=-1)


def _pad(offset, shape):
  rows, columns, _ = (
    new - old for new, old in zip(shape, offset.shape, strict=True)
  )
  return jnp.pad(offset, ((0, rows), (0, columns), (0, 0)))
