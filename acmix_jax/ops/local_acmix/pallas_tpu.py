"""A layer of ACmix as two Pallas kernels for TPU.

A program takes an image. It projects the queries, keys and values on the chip,
which they never leave: the backward kernel projects them again. What follows
are the kernels of `local_attention` and `shift_convolution`, one after the
other, and backwards the gradients of the projections.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from acmix_jax.ops import derivatives, kernels, sharding, tpu_projection
from acmix_jax.ops.local_acmix import geometry, tpu_plan
from acmix_jax.ops.local_attention import geometry as attention_geometry
from acmix_jax.ops.local_attention import pallas_tpu as attention_kernel
from acmix_jax.ops.local_attention import tiles, tpu_band, tpu_block
from acmix_jax.ops.shift_convolution import pallas_tpu as convolution_kernel
from acmix_jax.ops.shift_convolution import shifts

# The only block of an image.
_BLOCK = np.int32(0)


def why_not(problem: geometry.Problem) -> str | None:
  """Reason why the kernels cannot serve, or None."""
  reason = attention_kernel.why_not(problem.attention)
  reason = reason or convolution_kernel.why_not(problem.convolution)
  if reason:
    return reason
  return kernels.too_large(tpu_plan.make_plan(problem), problem.attention.keys)


def combine(
  problem: geometry.Problem, *arrays: jax.Array, interpret: Any = False
) -> Float[Array, 'b ho wo f']:
  """The sum of both paths, of the arrays of `local_acmix` in their order.

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
    slopes: This one and the next three: see `tpu_block.Constants`.
    offsets: See there.
    rows: See there.
    columns: See there.
    taps: Weights of the convolution.
    alpha: Factor of the attention.
    x: Image.
  """

  projection: Any
  bias: Any
  slopes: Any
  offsets: Any
  rows: Any
  columns: Any
  taps: Any
  alpha: Any
  x: Any

  @property
  def constants(self) -> tpu_block.Constants:
    """What the attention needs."""
    return tpu_block.Constants(
      self.slopes, self.offsets, self.rows, self.columns
    )


_COUNT = len(_Inputs._fields)


def _forward_kernel(*refs, plan: tpu_plan.Plan):
  inputs, (out_ref, *refs) = _Inputs(*refs[:_COUNT]), refs[_COUNT:]
  projected, maps = refs[:3], tpu_block.Maps(*refs[3:6])
  out, frame, weights = refs[6:]
  attention, convolution, _ = plan

  @pl.when(pl.program_id(1) == 0)
  def _():
    convolution_kernel.spread(weights, inputs.taps, convolution)
    kernels.clear(maps)

  tpu_projection.project(
    plan.slabs, inputs.x, inputs.projection, inputs.bias, projected
  )
  side = convolution.inputs(convolution.reach)
  convolution_kernel.fill(frame, projected, side, _BLOCK)
  convolution_kernel.convolve_block(convolution, frame, weights, out)
  maps.fill(attention, projected, _BLOCK)

  def add(band, lanes, attended):
    index = 0, *band.queries(), lanes
    attended = attended.reshape(*attention.band, -1)
    out[index] += inputs.alpha[0] * attended

  tpu_block.attend_block(attention, maps, inputs.constants, _BLOCK, add)
  height, width = out_ref.shape[1:3]

  @functools.partial(kernels.repeat, height)
  def _(i):
    out_ref[0, i] = out[0, i, :width].astype(out_ref.dtype)


def _backward_kernel(*refs, plan: tpu_plan.Plan):
  inputs, (dout_ref, dx_ref, *refs) = _Inputs(*refs[:_COUNT]), refs[_COUNT:]
  results, refs = refs[:5], refs[5:]
  dprojection, dbias, dtaps, dalpha, dslopes = results
  projected, maps = refs[:3], tpu_block.Maps(*refs[3:6])
  attention_dout, gradients = refs[6], tpu_block.Gradients(*refs[7:10])
  x, dx, dout, weights = refs[10:]
  attention, convolution, _ = plan

  @pl.when(pl.program_id(1) == 0)
  def _():
    convolution_kernel.spread(weights, inputs.taps, convolution)
    kernels.clear([*maps, attention_dout, *results])

  tpu_projection.project(
    plan.slabs, inputs.x, inputs.projection, inputs.bias, projected
  )
  side = convolution.inputs((0, 0))
  convolution_kernel.fill(x, projected, side, _BLOCK)
  convolution_kernel.fill(dout, [dout_ref], convolution.gradients(), _BLOCK)
  convolution_kernel.differentiate_block(
    convolution, x, dx, dout, weights, dtaps
  )
  # Those of the queries, too: there are none between the strides.
  kernels.clear(gradients)
  maps.fill(attention, projected, _BLOCK)
  tpu_band.fill_output_gradients(attention, attention_dout, dout_ref, _BLOCK)
  tpu_block.differentiate_block(
    *(attention, maps, inputs.constants, _BLOCK),
    *(attention_dout, gradients, dslopes),
  )
  _add_paths(plan, projected, dx, gradients, inputs.alpha, dalpha)
  tpu_projection.differentiate(
    *(plan.slabs, inputs.x, inputs.projection, projected),
    *(dx_ref, dprojection, dbias),
  )


def _add_paths(plan: tpu_plan.Plan, maps, dx, gradients, alpha_ref, dalpha_ref):
  """Writes the gradients of the maps in their place, of both paths.

  Args:
    plan: Sizes.
    maps: Queries, keys and values, which nobody reads again.
    dx: Frame of their gradients, of the convolution.
    gradients: Those of the attention, without alpha.
    alpha_ref: Factor of the attention.
    dalpha_ref: Its gradient, to add to.
  """
  side, channels = plan.convolution.inputs((0, 0)), plan.attention.channels
  height, width = side.size
  margins = 0, plan.attention.margin, plan.attention.margin

  @functools.partial(kernels.repeat, height)
  def _(i):
    attended = [
      tpu_band.read_row(frame, i, margin, width, channels)
      for frame, margin in zip(gradients, margins, strict=True)
    ]
    # The sum of dout * attended, as the attention is linear in the values.
    v = maps[2][0, i, :width].astype(jnp.float32)
    dalpha_ref[0] += (v * attended[2]).sum(0, keepdims=True)
    for number, source, sheet, target in side.pieces:
      total = alpha_ref[0] * attended[number][:, source]
      total += dx[sheet, i, :width, target]
      maps[number][0, i, :width, source] = total.astype(maps[number].dtype)


def _forward(static, x, *shared):
  plan = tpu_plan.make_plan(static[0])
  side = plan.convolution.inputs(plan.convolution.reach)
  output = *plan.attention.problem.queries, plan.attention.channels

  def call(x, *shared):
    [out] = kernels.call_images(
      _forward_kernel,
      *(plan, static[1]),
      *_constants(plan, *shared),
      images=[x],
      output=output,
      blocks=[plan.input, output],
      sums=[],
      scratch_shapes=[
        *_projected(plan, x.dtype),
        *tpu_block.frames(plan.attention),
        pltpu.VMEM((1, *plan.outputs), jnp.float32),
        *convolution_kernel.scratch(plan.convolution, [side]),
      ],
      cost_estimate=plan.cost(len(x), inputs=1, outputs=1, products=(1, 2, 1)),
      name='local_acmix',
    )
    return out

  return sharding.split_images(call, x, shared=shared), ()


def _backward(static, inputs, _, dout):
  plan = tpu_plan.make_plan(static[0])
  x, projection, bias, slopes, kernel, alpha = inputs
  taps = math.prod(kernel.shape[:2]), *kernel.shape[2:]

  def call(x, dout, *shared):
    channels = plan.attention.channels
    return kernels.call_images(
      _backward_kernel,
      *(plan, static[1]),
      *_constants(plan, *shared),
      images=[x, dout],
      output=x.shape[1:],
      blocks=[plan.input, dout.shape[1:], plan.input],
      sums=[projection.shape, bias.shape, taps, (1, channels), (2, channels)],
      scratch_shapes=[
        *_projected(plan, x.dtype),
        *tpu_block.frames(plan.attention),
        tpu_block.output_frame(plan.attention),
        *tpu_block.gradient_frames(plan.attention),
        *[pltpu.VMEM(shape, jnp.float32) for shape in plan.frames],
        pltpu.VMEM(plan.convolution.weights, kernel.dtype),
      ],
      cost_estimate=plan.cost(len(x), inputs=2, outputs=1, products=(3, 5, 2)),
      name='local_acmix_gradients',
    )

  dx, *sums = sharding.split_images(call, x, dout, shared=inputs[1:])
  dprojection, dbias, dtaps, dalpha, dslopes = (x.sum(0) for x in sums)
  return (
    dx,
    dprojection.astype(projection.dtype),
    dbias.astype(bias.dtype),
    # All gradients are alpha times those of the attention alone.
    alpha * attention_kernel.sum_heads(dslopes, plan.attention),
    dtaps.reshape(kernel.shape).astype(kernel.dtype),
    dalpha.sum(),
  )


def _general(static, x, projection, bias, slopes, kernel, alpha):
  attention, convolution, *_ = static[0]
  maps = jnp.einsum('bhwc,icf->ibhwf', x, projection)
  maps += bias[:, None, None, None]
  q, k, v = maps.reshape(*maps.shape[:4], attention.heads, -1)
  relative = attention_geometry.relative_keys(k, slopes)
  q_strided = q[:, :: attention.strides, :: attention.strides]
  attended = tiles.general(attention, q_strided, relative, v)
  convolved = shifts.convolve(convolution, [q, k, v], kernel)
  attended = attended.reshape(convolved.shape)
  return alpha.astype(v.dtype) * attended + convolved


def _constants(plan, projection, bias, slopes, kernel, alpha):
  """Arrays, and numbers, that all programs get."""
  constants = tpu_block.Constants.make(plan.attention, slopes)
  taps = convolution_kernel.merge_taps(kernel)
  return [projection, bias, *constants, taps], alpha[None]


def _projected(plan, dtype):
  """Memory for queries, keys and values."""
  return [pltpu.VMEM((1, *plan.shape), dtype)] * 3


_combine = derivatives.define(_forward, _backward, _general)
