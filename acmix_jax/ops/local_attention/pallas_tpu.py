"""Local attention as two Pallas kernels for TPU.

A program takes rows of one image: bands of queries and the rectangles of keys
that they reach (`tpu_block`). The logits never leave the chip, and the backward
kernel recomputes the softmax from q, k and v: nothing else is kept.

Heads stay side by side in the lanes, [b, h, w, n * d]: a last axis of d < 128
would be padded to 128 in memory. Zeros in the other heads' lanes of q cut a
product to one head.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Float32

from acmix_jax.ops import derivatives, kernels, sharding
from acmix_jax.ops.local_attention import (
  geometry,
  tiles,
  tpu_band,
  tpu_block,
  tpu_plan,
)


def _store(ref, frame, column: int):
  """Copies the first rows of a frame."""
  _, rows, columns, channels = ref.shape

  @functools.partial(kernels.repeat, rows)
  def _(i):
    x = tpu_band.read_row(frame, i, column, columns, channels)
    ref[0, i] = x.astype(ref.dtype)


def _forward_kernel(*refs, plan):
  inputs, constants, (out_ref, *frames, out) = refs[:3], refs[3:7], refs[7:]
  block, maps = pl.program_id(1), tpu_block.Maps(*frames)
  pl.when(block == 0)(lambda: kernels.clear(maps))
  maps.fill(plan, inputs, block)

  def write(band, lanes, x):
    kernels.write_frame(out, *band.queries(), lanes, x)

  tpu_block.attend_block(
    plan, maps, tpu_block.Constants(*constants), block, write
  )
  _store(out_ref, out, 0)


def _backward_kernel(*refs, plan):
  inputs, constants, (dout_ref, *refs) = refs[:3], refs[3:7], refs[7:]
  (dq_ref, *results, dslopes_ref), refs = refs[:4], refs[4:]
  block, maps, dout = pl.program_id(1), tpu_block.Maps(*refs[:3]), refs[3]
  gradients = tpu_block.Gradients(*refs[4:])

  @pl.when(block == 0)
  def _():
    kernels.clear([*maps, dout, *gradients[1:], dslopes_ref])

  maps.fill(plan, inputs, block)
  tpu_band.fill_output_gradients(plan, dout, dout_ref, block)
  constants = tpu_block.Constants(*constants)
  tpu_block.differentiate_block(
    plan, maps, constants, block, dout, gradients, dslopes_ref
  )
  # Where only keys are left, the gradients of the queries are there already.
  pl.when(block < plan.blocks)(lambda: _store(dq_ref, gradients.q, 0))
  for total, ref in zip(gradients[1:], results, strict=True):
    _store(ref, total, plan.margin)
    if plan.lag:
      complete = plan.rows[1]
      left = total.shape[1] - complete
      total[:, :left] = total[:, complete:]
      total[:, left:] = jnp.zeros_like(total[:, left:])


def why_not(problem: geometry.Problem) -> str | None:
  """Reason why the kernels cannot serve: dtypes, or the memory of the chip."""
  reason = kernels.why_not('TPU', problem, problem.dtypes[1])
  if reason:
    return reason
  return kernels.too_large(tpu_plan.make_plan(problem), problem.keys)


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
    constants = tpu_block.Constants.make(plan, slopes)
    queries, keys = plan.query_spec(), plan.key_spec()
    [out] = kernels.call(
      functools.partial(_forward_kernel, plan=plan),
      'tpu',
      [*merged, *constants],
      [jax.ShapeDtypeStruct(merged[0].shape, v.dtype)],
      static[1],
      grid=(len(q), plan.blocks),
      in_specs=[queries, keys, keys, *map(kernels.whole_spec, constants)],
      out_specs=[queries],
      scratch_shapes=[*tpu_block.frames(plan), tpu_block.output_frame(plan)],
      cost_estimate=plan.cost(len(q), queries=2, keys=2, sums=0, products=2),
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
    constants = tpu_block.Constants.make(plan, slopes)
    queries, keys = plan.query_spec(), plan.key_spec()
    gradients = plan.key_gradient_spec()
    dslopes = jax.ShapeDtypeStruct((len(q), 2, plan.channels), jnp.float32)
    dq, dk, dv, dslopes = kernels.call(
      functools.partial(_backward_kernel, plan=plan),
      'tpu',
      [*merged, *constants, merge_heads(dout)],
      [*(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in merged), dslopes],
      static[1],
      grid=(len(q), plan.blocks + plan.lag),
      in_specs=[
        queries,
        keys,
        keys,
        *map(kernels.whole_spec, constants),
        queries,
      ],
      out_specs=[
        *(queries, gradients, gradients),
        pl.BlockSpec((1, *dslopes.shape[1:]), lambda b, i: (b, 0, 0)),
      ],
      scratch_shapes=[
        *tpu_block.frames(plan),
        tpu_block.output_frame(plan),
        *tpu_block.gradient_frames(plan),
      ],
      cost_estimate=plan.cost(len(q), queries=3, keys=2, sums=2, products=5),
      compiler_params=_parameters(plan),
      name='local_attention_gradients',
    )
    dmaps = [
      x.reshape(y.shape) for x, y in zip((dq, dk, dv), (q, k, v), strict=True)
    ]
    return *dmaps, dslopes

  dq, dk, dv, dslopes = sharding.split_images(
    call, *maps, dout, shared=[slopes]
  )
  return dq, dk, dv, sum_heads(dslopes.sum(0), plan)


def _general(static, q, k, v, slopes):
  return tiles.general(static[0], q, geometry.relative_keys(k, slopes), v)


_attend = derivatives.define(_forward, _backward, _general)

# Slow: the kernels as plain operations, for tests.
interpret = functools.partial(attend, interpret=True)


def merge_heads(x: jax.Array) -> jax.Array:
  """[b, h, w, n, d] -> [b, h, w, n * d]."""
  return x.reshape(*x.shape[:3], -1)


def sum_heads(dslopes: jax.Array, plan: tpu_plan.Plan) -> jax.Array:
  """[2, n * d] -> [2, d]: heads share the position."""
  return dslopes.reshape(2, -1, plan.problem.depth).sum(1)


def _parameters(plan: tpu_plan.Plan):
  return pltpu.CompilerParams(
    dimension_semantics=('parallel', 'arbitrary'),
    vmem_limit_bytes=kernels.vmem_limit(plan),
  )
