"""Local attention as two Pallas kernels for TPU.

A program takes rows of one image: bands of queries and the rectangles of keys
that they reach. A band is multiplied densely on the matrix unit; a key outside
a query's window has a log count of -2e30. The logits never leave the chip, and
since a band has all keys of its queries, the backward kernel recomputes the
softmax from q, k and v: nothing else is kept.

Heads stay side by side in the lanes, [b, h, w, n * d]: a last axis of d < 128
would be padded to 128 in memory. Zeros in the other heads' lanes of q cut a
product to one head.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Float32

from acmix_jax.ops import derivatives, kernels, sharding
from acmix_jax.ops.local_attention import geometry, tiles, tpu_band, tpu_plan

_dot = kernels.dot


def _softmax(logits, log_counts):
  """Weights [heads * m, keys]; the log counts [m, keys] serve all heads."""
  logits = logits.reshape(-1, *log_counts.shape) + log_counts[None]
  weights = jnp.exp(logits - logits.max(-1, keepdims=True))
  weights *= 1 / weights.sum(-1, keepdims=True)
  return weights.reshape(-1, weights.shape[-1])


class Inputs(NamedTuple):
  """What both kernels read.

  Attributes:
    q: Queries of a block.
    k: Keys that they reach.
    v: Values that they reach.
    slopes: Change of the position by row and by column [2, channels].
    rows: Log counts by row.
    columns: Log counts by column.
  """

  q: Any
  k: Any
  v: Any
  slopes: Any
  rows: Any
  columns: Any


def attend_block(plan: tpu_plan.Plan, inputs: Inputs, block, write):
  """Calls write(index, sums of values [rows, columns, lanes])."""

  def attend_band(band):
    log_counts = band.log_counts(inputs.rows, inputs.columns)
    for lanes in plan.groups:
      q = kernels.spread_heads(
        band.read_queries(inputs.q, lanes), plan.problem.depth
      )
      keys = band.read_keys(inputs.k, inputs.slopes, lanes)
      logits = sum(_dot(q, k, 1, 1) for k in keys)
      weights = _softmax(logits, log_counts).astype(inputs.v.dtype)
      out = _dot(weights, band.read_values(inputs.v, lanes), 1, 0)
      out = kernels.collect_heads(out, plan.problem.depth).reshape(
        *plan.band, -1
      )
      write(band.queries(lanes), out)

  tpu_band.for_each_band(plan, block, attend_band)


def differentiate_block(
  plan: tpu_plan.Plan, inputs: Inputs, block, dout_ref, dk_sum, dv_sum, write
):
  """Adds to the gradients of keys and values; write(index, dq)."""
  depth = plan.problem.depth

  def differentiate_band(band):
    log_counts = band.log_counts(inputs.rows, inputs.columns)
    for lanes in plan.groups:
      q = kernels.spread_heads(band.read_queries(inputs.q, lanes), depth)
      dout = kernels.spread_heads(band.read_queries(dout_ref, lanes), depth)
      keys = band.read_keys(inputs.k, inputs.slopes, lanes)
      v = band.read_values(inputs.v, lanes)
      logits = sum(_dot(q, k, 1, 1) for k in keys)
      weights = _softmax(logits, log_counts)
      dweights = _dot(dout, v, 1, 1)
      mean = (weights * dweights).sum(-1, keepdims=True)
      dlogits = (weights * (dweights - mean)).astype(q.dtype)
      dq = kernels.collect_heads(
        sum(_dot(dlogits, k, 1, 0) for k in keys), depth
      )
      write(band.queries(lanes), dq.reshape(*plan.band, -1))
      index = band.keys(plan.first_summed(block), lanes)
      shape = (*plan.span, -1)
      dk = _dot(dlogits, q, 0, 0) * depth**-0.5
      dk_sum[index] += dk.reshape(shape)
      dv = _dot(weights.astype(dout.dtype), dout, 0, 0)
      dv_sum[index] += dv.reshape(shape)

  tpu_band.for_each_band(plan, block, differentiate_band)


def _forward_kernel(*refs, plan):
  *inputs, out_ref = refs

  def write(index, out):
    out_ref[index] = out.astype(out_ref.dtype)

  attend_block(plan, Inputs(*inputs), pl.program_id(1), write)


def _backward_kernel(*refs, plan):
  *inputs, dout_ref, dq_ref, dk_ref, dv_ref, dk_sum, dv_sum = refs
  block, complete = pl.program_id(1), plan.rows[1]
  sums = (dk_sum, dk_ref), (dv_sum, dv_ref)

  @pl.when(block == 0)
  def _():
    for total, _ in sums:
      total[...] = jnp.zeros_like(total)

  def write(index, dq):
    dq_ref[index] = dq.astype(dq_ref.dtype)

  differentiate_block(
    plan, Inputs(*inputs), block, dout_ref, dk_sum, dv_sum, write
  )

  for total, ref in sums:
    ref[0] = total[:complete].astype(ref.dtype)
    if plan.lag:
      left = total.shape[0] - complete
      total[:left] = total[complete:]
      total[left:] = jnp.zeros_like(total[left:])


def why_not(problem: geometry.Problem) -> str | None:
  """Reason why the kernels cannot serve: dtypes, or the memory of the chip."""
  reason = kernels.why_not('TPU', problem.varying, problem.dtypes[1])
  if reason:
    return reason
  needed = tpu_plan.make_plan(problem).vmem_bytes
  if needed > tpu_plan.VMEM:
    return (
      f'the kernel for TPU would need {needed / kernels.MIB:.0f} MiB on chip '
      f'for maps of {problem.keys}; {tpu_plan.VMEM / kernels.MIB:.0f} are '
      'allowed.'
    )
  return None


def attend(
  problem: geometry.Problem,
  q: Float[Array, 'b ho wo n d'],
  k: Float[Array, 'b h w n d'],
  v: Float[Array, 'b h w n d'],
  slopes: Float32[Array, '2 d'],
  interpret: Any = False,
) -> Float[Array, 'b ho wo n d']:
  """Attention of each query over the window around it, reflected at borders.

  Its first gradient is a kernel, other derivatives are those of tiles. Products
  of float32 are as precise as jax_default_matmul_precision says.

  Several devices share the images if `jax.set_mesh` names their mesh; jax
  refuses to lower the kernels otherwise.

  Args:
    problem: Sizes of the arrays and the window.
    q: Queries.
    k: Keys.
    v: Values.
    slopes: Change of the position from a row, and from a column, to the next.
    interpret: `interpret` of `pallas_call`; True runs on any machine, slowly.

  Returns:
    Sums of values in the dtype of v.
  """
  return _attend((problem, interpret), q, k, v, slopes)


def _forward(static, q, k, v, slopes):
  plan = tpu_plan.make_plan(static[0])

  def call(q, k, v, slopes):
    merged = [merge_heads(x) for x in (q, k, v)]
    constants = make_constants(plan, slopes)
    queries, keys = plan.query_spec(), plan.key_spec()
    [out] = kernels.call(
      functools.partial(_forward_kernel, plan=plan),
      'tpu',
      merged + constants,
      [jax.ShapeDtypeStruct(merged[0].shape, v.dtype)],
      static[1],
      grid=(len(q), plan.blocks),
      in_specs=[queries, keys, keys, *map(whole_spec, constants)],
      out_specs=[queries],
      cost_estimate=plan.cost(len(q), queries=2, keys=2, sums=0, products=3),
      compiler_params=_parameters(plan),
      name='local_attention',
    )
    return out.reshape(q.shape)

  return sharding.split_images(call, q, k, v, shared=[slopes]), ()


def _backward(static, inputs, _, dout):
  plan = tpu_plan.make_plan(static[0])
  *maps, slopes = inputs

  def call(q, k, v, dout, slopes):
    merged = [merge_heads(x) for x in (q, k, v)]
    constants = make_constants(plan, slopes)
    queries, keys = plan.query_spec(), plan.key_spec()
    gradients = plan.key_gradient_spec()
    dq, dk, dv = kernels.call(
      functools.partial(_backward_kernel, plan=plan),
      'tpu',
      [*merged, *constants, merge_heads(dout)],
      [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in merged],
      static[1],
      grid=(len(q), plan.blocks + plan.lag),
      in_specs=[queries, keys, keys, *map(whole_spec, constants), queries],
      out_specs=[queries, gradients, gradients],
      scratch_shapes=[plan.sum_shape()] * 2,
      cost_estimate=plan.cost(len(q), queries=3, keys=2, sums=2, products=7),
      compiler_params=_parameters(plan),
      name='local_attention_gradients',
    )
    return dq.reshape(q.shape), dk.reshape(k.shape), dv.reshape(v.shape)

  dq, dk, dv = sharding.split_images(call, *maps, dout, shared=[slopes])
  return dq, dk, dv, geometry.slope_gradient(dk)


def _general(static, q, k, v, slopes):
  return tiles.general(static[0], q, geometry.relative_keys(k, slopes), v)


_attend = derivatives.define(_forward, _backward, _general)

# Slow: the kernels as plain operations, for tests.
interpret = functools.partial(attend, interpret=True)


def merge_heads(x: jax.Array) -> jax.Array:
  """[b, h, w, n, d] -> [b, h, w, n * d]."""
  return x.reshape(*x.shape[:3], -1)


def make_constants(plan: tpu_plan.Plan, slopes: jax.Array) -> list[jax.Array]:
  """`Inputs` from the slopes on."""
  return [jnp.tile(slopes, plan.problem.heads), *plan.count_tables()]


def whole_spec(x: jax.Array) -> pl.BlockSpec:
  """The same array for all programs."""
  return pl.BlockSpec(x.shape, lambda *_: (0,) * x.ndim)


def _parameters(plan: tpu_plan.Plan):
  return pltpu.CompilerParams(
    dimension_semantics=('parallel', 'arbitrary'),
    vmem_limit_bytes=max(16 * kernels.MIB, plan.vmem_bytes),
  )
