"""A layer of ACmix as two Pallas kernels for TPU.

A program takes an image. It projects the queries, keys and values on the chip,
which they never leave: the backward kernel projects them again. What follows
are the kernels of `local_attention` and `shift_convolution`, one after the
other, and backwards the gradients of the projections.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Float32

from acmix_jax.ops import derivatives, kernels, sharding
from acmix_jax.ops.local_acmix import geometry, tpu_plan
from acmix_jax.ops.local_attention import geometry as attention_geometry
from acmix_jax.ops.local_attention import pallas_tpu as attention_kernel
from acmix_jax.ops.local_attention import tiles, tpu_band
from acmix_jax.ops.local_attention import tpu_plan as attention_plan
from acmix_jax.ops.shift_convolution import pallas_tpu as convolution_kernel
from acmix_jax.ops.shift_convolution import shifts

_dot = kernels.dot
# The only block of an image.
_BLOCK = np.int32(0)


def why_not(problem: geometry.Problem) -> str | None:
  """Reason why the kernels cannot serve, or None."""
  reason = attention_kernel.why_not(problem.attention)
  reason = reason or convolution_kernel.why_not(problem.convolution)
  if reason:
    return reason
  needed = tpu_plan.make_plan(problem).vmem_bytes
  if needed > attention_plan.VMEM:
    return (
      f'the kernel for TPU would need {needed / kernels.MIB:.0f} MiB on chip '
      f'for maps of {problem.attention.keys}.'
    )
  return None


def combine(
  problem: geometry.Problem,
  x: Float[Array, 'b h w c'],
  projection: Float[Array, '3 c f'],
  bias: Float[Array, '3 f'],
  slopes: Float32[Array, '2 d'],
  kernel: Float[Array, 'kh kw m f'],
  alpha: Float32[Array, ''],
  interpret: Any = False,
) -> Float[Array, 'b h w f']:
  """The sum alpha * local attention + grouped convolution; see `local_acmix`.

  Its first gradient is a kernel, other derivatives are those of plain forms.
  """
  return _combine(
    (problem, interpret), x, projection, bias, slopes, kernel, alpha
  )


# Slow: the kernels as plain operations, for tests.
interpret = functools.partial(combine, interpret=True)


def _for_each_part(plan: tpu_plan.Plan, body):
  """Calls body(index of rows in a map) for the parts of an image."""

  @functools.partial(kernels.repeat, plan.turns)
  def _(turn):
    rows = pl.ds(turn * plan.rows, plan.rows)
    body((0, rows), [turn * plan.rows, 0])


def _project(plan: tpu_plan.Plan, x_ref, projection_ref, bias_ref, maps):
  """Writes the queries, keys and values."""
  size = plan.attention.problem.keys

  def project(index, first):
    x = tpu_band.inside(x_ref[index], first, size)
    for i, ref in enumerate(maps):
      y = _dot(x, projection_ref[i], 1, 0) + bias_ref[i : i + 1]
      y = y.astype(ref.dtype)
      ref[index] = y.reshape(plan.rows, *ref.shape[2:])

  _for_each_part(plan, project)


def _differentiate_projections(
  plan: tpu_plan.Plan, x_ref, projection_ref, dmaps, results
):
  """Writes the gradient of the input, and adds to those of the projections."""
  dx_ref, dprojection_ref, dbias_ref = results
  size = plan.attention.problem.keys

  def differentiate(index, first):
    x = tpu_band.inside(x_ref[index], first, size)
    dx = 0
    for i, ref in enumerate(dmaps):
      dmap = tpu_band.inside(ref[index], first, size)
      dx += _dot(dmap, projection_ref[i], 1, 1)
      dprojection_ref[0, i] += _dot(x, dmap, 0, 0)
      dbias_ref[0, i : i + 1] += dmap.astype(jnp.float32).sum(0, keepdims=True)
    dx = dx.reshape(plan.rows, *dx_ref.shape[2:])
    dx_ref[index] = dx.astype(dx_ref.dtype)

  _for_each_part(plan, differentiate)


def _forward_kernel(*refs, plan: tpu_plan.Plan):
  (x_ref, *weights_refs), refs = refs[:3], refs[3:]
  *constants, taps_ref, alpha_ref, out_ref = refs[:6]
  (*maps, frame, weights) = refs[6:]
  attention, convolution, _ = plan
  inputs = attention_kernel.Inputs(*maps, *constants)

  @pl.when(pl.program_id(1) == 0)
  def _():
    convolution_kernel.spread(weights, taps_ref, convolution)

  _project(plan, x_ref, *weights_refs, maps)
  side = convolution.inputs(convolution.reach)
  convolution_kernel.fill(frame, maps, side, _BLOCK)
  convolution_kernel.convolve_block(convolution, frame, weights, out_ref)

  def add(index, attended):
    out = out_ref[index] + alpha_ref[0] * attended
    out_ref[index] = out.astype(out_ref.dtype)

  attention_kernel.attend_block(attention, inputs, _BLOCK, add)


def _backward_kernel(*refs, plan: tpu_plan.Plan):
  (x_ref, *weights_refs), refs = refs[:3], refs[3:]
  (*constants, taps_ref, alpha_ref, dout_ref), refs = refs[:6], refs[6:]
  dx_ref, *results = refs[:6]
  (*maps,), (*sums,), refs = refs[6:9], refs[9:12], refs[12:]
  dtaps_ref, dalpha_ref, dslopes_ref = results[2:]
  x, dx, dout, weights = refs
  attention, convolution, _ = plan
  inputs = attention_kernel.Inputs(*maps, *constants)
  side = convolution.inputs((0, 0))

  @pl.when(pl.program_id(1) == 0)
  def _():
    convolution_kernel.spread(weights, taps_ref, convolution)
    for ref in results:
      ref[...] = jnp.zeros_like(ref)

  _project(plan, x_ref, *weights_refs, maps)
  convolution_kernel.fill(x, maps, side, _BLOCK)
  convolution_kernel.fill(dout, [dout_ref], convolution.gradients(), _BLOCK)
  convolution_kernel.differentiate_block(
    convolution, x, dx, dout, weights, dtaps_ref
  )

  for total in sums:
    total[...] = jnp.zeros_like(total)

  def put(index, dq):
    sums[0][index[1:]] = dq

  attention_kernel.differentiate_block(
    attention, inputs, _BLOCK, dout_ref, *sums[1:], put
  )

  # All gradients are alpha times those of the attention alone.
  @functools.partial(kernels.repeat, side.size[0])
  def _(i):
    width = side.size[1]
    # The sum of dout * attended, as the attention is linear in the values.
    v = inputs.v[0, i, :width].astype(jnp.float32)
    dalpha_ref[0] += (v * sums[2][i, :width]).sum(0, keepdims=True)
    dk = alpha_ref[0] * sums[1][i, :width]
    column = lax.broadcasted_iota(jnp.int32, dk.shape, 0).astype(jnp.float32)
    row = i.astype(jnp.float32) - attention_geometry.middle(side.size[0])
    column -= attention_geometry.middle(width)
    dslopes_ref[0, 0:1] -= (row * dk).sum(0, keepdims=True)
    dslopes_ref[0, 1:2] -= (column * dk).sum(0, keepdims=True)
    # In place: nobody reads these maps again.
    for number, source, sheet, target in side.pieces:
      total = dx[sheet, i, :width, target]
      total += alpha_ref[0] * sums[number][i, :width, source]
      maps[number][0, i, :width, source] = total.astype(maps[number].dtype)

  _differentiate_projections(
    plan, x_ref, weights_refs[0], maps, (dx_ref, *results[:2])
  )


def _forward(static, x, *shared):
  plan = tpu_plan.make_plan(static[0])
  side = plan.convolution.inputs(plan.convolution.reach)

  def call(x, *shared):
    [out] = _call(
      _forward_kernel,
      static,
      [x],
      shared,
      features=plan.attention.channels,
      sums=[],
      scratch_shapes=convolution_kernel.scratch(plan.convolution, [side]),
      cost_estimate=plan.cost(len(x), maps=2, products=(1, 3, 1)),
      name='local_acmix',
    )
    return out

  return sharding.split_images(call, x, shared=shared), ()


def _backward(static, inputs, _, dout):
  plan = tpu_plan.make_plan(static[0])
  x, projection, bias, slopes, kernel, alpha = inputs

  def call(x, dout, *shared):
    taps = convolution_kernel.merge_taps(kernel).shape
    channels = plan.attention.channels
    return _call(
      _backward_kernel,
      static,
      [x, dout],
      shared,
      features=plan.channels,
      sums=[projection.shape, bias.shape, taps, (1, channels), (2, channels)],
      scratch_shapes=[
        *[pltpu.VMEM(plan.shape, jnp.float32)] * 3,
        *[pltpu.VMEM(shape, jnp.float32) for shape in plan.frames],
        pltpu.VMEM(plan.convolution.weights, kernel.dtype),
      ],
      cost_estimate=plan.cost(len(x), maps=3, products=(3, 7, 2)),
      name='local_acmix_gradients',
    )

  dx, *sums = sharding.split_images(call, x, dout, shared=inputs[1:])
  dprojection, dbias, dtaps, dalpha, dslopes = (x.sum(0) for x in sums)
  return (
    dx,
    dprojection.astype(projection.dtype),
    dbias.astype(bias.dtype),
    # Heads share the position.
    dslopes.reshape(2, -1, slopes.shape[1]).sum(1),
    dtaps.reshape(kernel.shape).astype(kernel.dtype),
    dalpha.sum(),
  )


def _general(static, x, projection, bias, slopes, kernel, alpha):
  attention, convolution, *_ = static[0]
  maps = jnp.einsum('bhwc,icf->ibhwf', x, projection)
  maps += bias[:, None, None, None]
  q, k, v = maps.reshape(*maps.shape[:4], attention.heads, -1)
  relative = attention_geometry.relative_keys(k, slopes)
  attended = tiles.general(attention, q, relative, v)
  convolved = shifts.convolve(convolution, [q, k, v], kernel)
  attended = attended.reshape(convolved.shape)
  return alpha.astype(v.dtype) * attended + convolved


_combine = derivatives.define(_forward, _backward, _general)


def _call(
  kernel, static, maps, shared, *, features, sums, scratch_shapes, **options
):
  """Runs a kernel on whole images.

  Args:
    kernel: The kernel.
    static: Problem and `interpret`.
    maps: The input, and the gradient of the output.
    shared: Projection, bias, slopes, kernel of the convolution, and alpha.
    features: Channels of the map that it gives.
    sums: Shapes of the sums over images that it gives, one for each core.
    scratch_shapes: Memory on chip beside queries, keys and values.
    **options: Others of `pallas_call`.
  """
  plan = tpu_plan.make_plan(static[0])
  *projections, slopes, taps, alpha = shared
  constants = attention_kernel.make_constants(plan.attention, slopes)
  constants = [*projections, *constants, convolution_kernel.merge_taps(taps)]
  x = maps[0]
  parts = kernels.parts_of(len(x))
  each = len(x) // parts

  def image(channels):
    return pl.BlockSpec(
      (1, *plan.size, channels), lambda part, i: (part * each + i, 0, 0, 0)
    )

  return kernels.call(
    functools.partial(kernel, plan=plan),
    'tpu',
    [x, *constants, alpha[None], *maps[1:]],
    [
      jax.ShapeDtypeStruct((*x.shape[:3], features), x.dtype),
      *(jax.ShapeDtypeStruct((parts, *shape), jnp.float32) for shape in sums),
    ],
    static[1],
    grid=(parts, each),
    in_specs=[
      image(x.shape[3]),
      *map(attention_kernel.whole_spec, constants),
      pl.BlockSpec(memory_space=pltpu.SMEM),
      *(image(y.shape[3]) for y in maps[1:]),
    ],
    out_specs=[image(features), *map(_part_spec, sums)],
    scratch_shapes=[
      *[pltpu.VMEM((1, *plan.shape), x.dtype)] * 3,
      *scratch_shapes,
    ],
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=('parallel', 'arbitrary'),
      vmem_limit_bytes=max(16 * kernels.MIB, plan.vmem_bytes * 5 // 4),
    ),
    **options,
  )


def _part_spec(shape):
  """The sums of a core."""
  return pl.BlockSpec((1, *shape), lambda part, _: (part, *(0,) * len(shape)))
