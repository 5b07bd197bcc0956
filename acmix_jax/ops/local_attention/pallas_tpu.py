"""Local attention as two Pallas kernels for TPU.

A program takes rows of one image: bands of queries and the rectangles of keys
that they reach. A band is multiplied densely on the matrix unit; a key outside
a query's window has a log count of -inf. The logits never leave the chip, and
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
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from acmix_jax.ops import kernels, sharding
from acmix_jax.ops.local_attention import fused, geometry, tpu_plan

_dot = kernels.dot


class _Band(NamedTuple):
  """A band of queries within a program.

  Attributes:
    plan: Sizes of a band and of its program.
    block: Number of the program's rows.
    row: Number of the band in the program.
    column: Number of the band along the columns.
  """

  plan: tpu_plan.Plan
  block: Any
  row: Any
  column: Any

  @property
  def place(self):
    """Row and column among the bands of the map."""
    return self.block * self.plan.turns + self.row, self.column

  def queries(self, lanes: slice):
    """Index of the queries in those of the program."""
    rows, columns = self.plan.band
    first = pl.multiple_of(self.column * columns, kernels.SUBLANES)
    return 0, pl.ds(self.row * rows, rows), pl.ds(first, columns), lanes

  def keys(self, first_row, lanes: slice):
    """Index of the keys in rows that begin with `first_row` of the map."""
    row, column = self.first_keys()
    row, column = row - first_row, pl.multiple_of(column, kernels.SUBLANES)
    return (
      pl.ds(row, self.plan.span[0]),
      pl.ds(column, self.plan.span[1]),
      lanes,
    )

  def first_keys(self):
    """Row and column of the first key."""
    return [
      self.plan.first_keys(band, axis) for axis, band in enumerate(self.place)
    ]

  def read_queries(self, ref, lanes: slice):
    """The queries [pixels, lanes]; zeros beyond the map."""
    first = [
      band * size for band, size in zip(self.place, self.plan.band, strict=True)
    ]
    return _inside(ref[self.queries(lanes)], first, self.plan.problem.queries)

  def read_keys(self, ref, lanes: slice):
    """The keys [pixels, lanes]; zeros beyond the map."""
    first_row = self.plan.first_fetched(self.block)
    x = ref[0, *self.keys(first_row, lanes)]
    return _inside(x, self.first_keys(), self.plan.problem.keys)

  def log_counts(self, rows_ref, columns_ref):
    """How often each key is in each window [queries, keys]."""
    row, column = self.place
    rows, columns = rows_ref[row], columns_ref[column]
    return (rows[:, None] + columns[None]).reshape(-1, rows.shape[-1])


def _for_each_band(plan: tpu_plan.Plan, body):
  """Calls body(band) for the bands of a program, one after the other."""
  block = pl.program_id(1)
  rows, columns = plan.bands
  # Of the last blocks there may be none left.
  count = (rows - block * plan.turns).clip(0, plan.turns)

  @functools.partial(lax.fori_loop, 0, count * columns, init_val=None)
  def _(number, _):
    # Those of jnp ask which chip it is, which a machine without one can't say.
    row, column = lax.div(number, columns), lax.rem(number, columns)
    body(_Band(plan, block, row, column))


def _inside(x, first, size):
  """Flattens [rows, columns, lanes]; zeros beyond a map of `size` pixels."""
  row, column = (
    first[axis] + lax.broadcasted_iota(jnp.int32, x.shape, axis)
    for axis in (0, 1)
  )
  x = jnp.where((row < size[0]) & (column < size[1]), x, 0)
  return x.reshape(-1, x.shape[-1])


def _own_lanes(shape, depth: int):
  """Masks of the lanes of each head."""
  lane = lax.broadcasted_iota(jnp.int32, shape, len(shape) - 1)
  return [
    (lane >= first) & (lane < first + depth)
    for first in range(0, shape[-1], depth)
  ]


def _spread(x: jax.Array, depth: int) -> jax.Array:
  """[m, heads * d] -> [heads * m, heads * d], zero in other heads' lanes."""
  return jnp.concatenate(
    [jnp.where(own, x, 0) for own in _own_lanes(x.shape, depth)]
  )


def _collect(x: jax.Array, depth: int) -> jax.Array:
  """[heads * m, heads * d] -> [m, heads * d]: each head's lanes of its rows."""
  x = x.reshape(x.shape[1] // depth, -1, x.shape[1])
  masks = _own_lanes(x.shape[1:], depth)
  return sum(jnp.where(own, x[i], 0) for i, own in enumerate(masks))


def _softmax(logits, log_counts):
  """Weights [heads * m, keys]; the log counts [m, keys] serve all heads."""
  logits = logits.reshape(-1, *log_counts.shape) + log_counts[None]
  weights = jnp.exp(logits - logits.max(-1, keepdims=True))
  weights *= 1 / weights.sum(-1, keepdims=True)
  return weights.reshape(-1, weights.shape[-1])


def _forward_kernel(
  q_ref, k_ref, v_ref, rows_ref, columns_ref, out_ref, *, plan
):
  def attend_band(band):
    log_counts = band.log_counts(rows_ref, columns_ref)
    for lanes in plan.groups:
      q = _spread(band.read_queries(q_ref, lanes), plan.problem.depth)
      logits = _dot(q, band.read_keys(k_ref, lanes), 1, 1)
      weights = _softmax(logits, log_counts).astype(v_ref.dtype)
      out = _dot(weights, band.read_keys(v_ref, lanes), 1, 0)
      out = _collect(out, plan.problem.depth).reshape(*plan.band, -1)
      out_ref[band.queries(lanes)] = out.astype(out_ref.dtype)

  _for_each_band(plan, attend_band)


def _backward_kernel(
  q_ref,
  k_ref,
  v_ref,
  rows_ref,
  columns_ref,
  dout_ref,
  dq_ref,
  dk_ref,
  dv_ref,
  dk_sum,
  dv_sum,
  *,
  plan,
):
  block, complete = pl.program_id(1), plan.rows[1]
  sums = (dk_sum, dk_ref), (dv_sum, dv_ref)

  @pl.when(block == 0)
  def _():
    for total, _ in sums:
      total[...] = jnp.zeros_like(total)

  def differentiate_band(band):
    log_counts = band.log_counts(rows_ref, columns_ref)
    for lanes in plan.groups:
      q = _spread(band.read_queries(q_ref, lanes), plan.problem.depth)
      dout = _spread(band.read_queries(dout_ref, lanes), plan.problem.depth)
      k, v = band.read_keys(k_ref, lanes), band.read_keys(v_ref, lanes)
      weights = _softmax(_dot(q, k, 1, 1), log_counts)
      dweights = _dot(dout, v, 1, 1)
      mean = (weights * dweights).sum(-1, keepdims=True)
      dlogits = (weights * (dweights - mean)).astype(k.dtype)
      dq = _collect(_dot(dlogits, k, 1, 0), plan.problem.depth)
      dq = dq.reshape(*plan.band, -1)
      dq_ref[band.queries(lanes)] = dq.astype(dq_ref.dtype)
      index = band.keys(plan.first_summed(block), lanes)
      shape = (*plan.span, -1)
      dk_sum[index] += _dot(dlogits, q, 0, 0).reshape(shape)
      dv = _dot(weights.astype(dout.dtype), dout, 0, 0)
      dv_sum[index] += dv.reshape(shape)

  _for_each_band(plan, differentiate_band)

  for total, ref in sums:
    ref[0] = total[:complete].astype(ref.dtype)
    if plan.lag:
      left = total.shape[0] - complete
      total[:left] = total[complete:]
      total[left:] = jnp.zeros_like(total[left:])


def why_not(problem: geometry.Problem) -> str | None:
  """Reason why the kernels cannot serve: dtypes, or the memory of the chip."""
  if problem.varying:
    return f'of the kernel for TPU, {sharding.WHY_NOT_VARYING}'
  dtype = problem.dtypes[1]
  if dtype not in (jnp.bfloat16, jnp.float32):
    return f'the kernel for TPU takes float32 and bfloat16, not {dtype}.'
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
  interpret: Any = False,
) -> Float[Array, 'b ho wo n d']:
  """Attention of each query over the window around it, reflected at borders.

  Its first gradient is a kernel, other derivatives are those of tiles. Products
  of float32 are as precise as jax_default_matmul_precision says.

  Several devices share the images if `jax.set_mesh` names their mesh; jax
  refuses to lower the kernels otherwise (and issue 38196, to split them).

  Args:
    problem: Sizes of the arrays and the window.
    q: Queries.
    k: Keys, scaled.
    v: Values.
    interpret: `interpret` of `pallas_call`; True runs on any machine, slowly.

  Returns:
    Sums of values in the dtype of v.
  """
  return _attend((problem, interpret), q, k, v)


def _forward(static, q, k, v):
  plan = tpu_plan.make_plan(static[0])

  def call(q, k, v):
    counts = plan.count_tables()
    merged = [_merge_heads(x) for x in (q, k, v)]
    queries, keys = plan.query_spec(), plan.key_spec()
    [out] = kernels.call(
      functools.partial(_forward_kernel, plan=plan),
      'tpu',
      merged + counts,
      [jax.ShapeDtypeStruct(merged[0].shape, v.dtype)],
      static[1],
      grid=(len(q), plan.blocks),
      in_specs=[queries, keys, keys, *map(_whole_spec, counts)],
      out_specs=[queries],
      cost_estimate=plan.cost(len(q), queries=2, keys=2, sums=0, products=2),
      compiler_params=_parameters(plan),
      name='local_attention',
    )
    return out.reshape(q.shape)

  return sharding.split_images(call, q, k, v), ()


def _backward(static, inputs, _, dout):
  plan = tpu_plan.make_plan(static[0])

  def call(q, k, v, dout):
    counts = plan.count_tables()
    merged = [_merge_heads(x) for x in (q, k, v)]
    queries, keys = plan.query_spec(), plan.key_spec()
    gradients = plan.key_gradient_spec()
    dq, dk, dv = kernels.call(
      functools.partial(_backward_kernel, plan=plan),
      'tpu',
      [*merged, *counts, _merge_heads(dout)],
      [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in merged],
      static[1],
      grid=(len(q), plan.blocks + plan.lag),
      in_specs=[queries, keys, keys, *map(_whole_spec, counts), queries],
      out_specs=[queries, gradients, gradients],
      scratch_shapes=[plan.sum_shape()] * 2,
      cost_estimate=plan.cost(len(q), queries=3, keys=2, sums=2, products=5),
      compiler_params=_parameters(plan),
      name='local_attention_gradients',
    )
    return dq.reshape(q.shape), dk.reshape(k.shape), dv.reshape(v.shape)

  return sharding.split_images(call, *inputs, dout)


_attend = fused.define(_forward, _backward)

# Slow: the kernels as plain operations, for tests.
interpret = functools.partial(attend, interpret=True)


def _merge_heads(x):
  return x.reshape(*x.shape[:3], -1)


def _whole_spec(x):
  return pl.BlockSpec(x.shape, lambda *_: (0,) * x.ndim)


def _parameters(plan: tpu_plan.Plan):
  return pltpu.CompilerParams(
    dimension_semantics=('parallel', 'arbitrary'),
    vmem_limit_bytes=max(16 * kernels.MIB, plan.vmem_bytes),
  )
