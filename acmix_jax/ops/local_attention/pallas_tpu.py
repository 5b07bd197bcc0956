"""Local attention as two Pallas kernels for TPU.

A program takes a band of queries of one image and the rectangle of keys that
the band reaches. They are multiplied densely on the matrix unit; a key outside
a query's window has a log count of -inf. The logits never leave the chip, and
since a program holds all keys of its queries, the backward kernel recomputes
the softmax from q, k and v: nothing else is kept.

Heads stay side by side in the lanes, [b, h, w, n * d]: a last axis of d < 128
would be padded to 128 in memory. Zeros in the other heads' lanes of q cut a
product to one head.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from acmix_jax.ops import sharding
from acmix_jax.ops.local_attention import fused, geometry

_LANES = 128
# Columns are cut at multiples of a register's rows of 16-bit numbers.
_SUBLANES = 16
# Queries of a program, and the widest map whose rows are not cut.
_QUERIES = 128
_UNCUT = 64
_MIB = 2**20
# A core has 16 (v2 to v4), 64 (v5p, v7) or 128 MiB (v5e, v6e).
_VMEM = 56 * _MIB

_dot = geometry.dot


def _round_up(size: int, multiple: int) -> int:
  return -(-size // multiple) * multiple


class _Plan(NamedTuple):
  """How two maps are cut into programs; all is static.

  Attributes:
    problem: Sizes of the maps and the window.
    band: Rows and columns of the queries of a program.
    span: Rows and columns of the keys of a program.
  """

  problem: geometry.Problem
  band: tuple[int, int]
  span: tuple[int, int]

  @property
  def channels(self) -> int:
    """Channels of all heads."""
    return self.problem.heads * self.problem.depth

  @property
  def grid(self) -> tuple[int, int]:
    """Bands along the rows and the columns of the queries."""
    rows, columns = map(pl.cdiv, self.problem.queries, self.band)
    return rows, columns

  @property
  def groups(self) -> list[slice]:
    """Lanes of whole heads that one product takes: a register, if possible."""
    depth, size = self.problem.depth, self.channels
    if _LANES % depth == 0 or depth % _LANES == 0:
      size = max(_LANES, depth)
    return [
      slice(first, min(first + size, self.channels))
      for first in range(0, self.channels, size)
    ]

  def first_keys(self, band, axis: int):
    """First row (axis 0) or column (1) of keys of the band of that number."""
    align = (1, _SUBLANES)[axis]
    last = _round_up(self.problem.keys[axis], align) - self.span[axis]
    first = band * (self.band[axis] * self.problem.strides)
    first -= self.problem.reach
    return first.clip(0, last) & -align


def _make_plan(problem: geometry.Problem) -> _Plan:
  columns = _round_up(problem.queries[1], _SUBLANES)
  if columns > _UNCUT:
    columns = _UNCUT // 2
  bands = pl.cdiv(problem.queries[0], max(1, _QUERIES // columns))
  rows = pl.cdiv(problem.queries[0], bands)
  # A cut starts up to _SUBLANES - 1 columns before the first key it needs.
  needed = (columns - 1) * problem.strides + problem.extent + _SUBLANES - 1
  return _Plan(
    problem,
    band=(rows, columns),
    span=(
      min(problem.keys[0], (rows - 1) * problem.strides + problem.extent),
      _round_up(min(problem.keys[1], needed), _SUBLANES),
    ),
  )


def _count_tables(plan: _Plan) -> list[jax.Array]:
  """Log counts by row and by column [bands, band, span rows * columns]."""
  problem = plan.problem
  key = jnp.arange(math.prod(plan.span), dtype=jnp.int32)
  lines = key // plan.span[1], key % plan.span[1]
  tables = []
  for axis, line in enumerate(lines):
    bands = jnp.arange(plan.grid[axis], dtype=jnp.int32)[:, None, None]
    query = jnp.arange(plan.band[axis], dtype=jnp.int32)[None, :, None]
    query += bands * plan.band[axis]
    # Queries beyond the map are the last one again, so that each has a key.
    query = query.clip(max=problem.queries[axis] - 1) * problem.strides
    key = plan.first_keys(bands, axis) + line[None, None]
    tables.append(geometry.log_counts(query, key, problem.keys[axis], problem))
  return tables


def _log_counts(plan, rows_ref, columns_ref):
  """How often each key is in each window of a program [queries, keys]."""
  rows, columns = rows_ref[pl.program_id(1)], columns_ref[pl.program_id(2)]
  return (rows[:, None] + columns[None]).reshape(-1, rows.shape[-1])


def _inside(x, first, size):
  """Flattens [rows, columns, lanes]; zeros beyond a map of `size` pixels."""
  row, column = (
    first[axis] + lax.broadcasted_iota(jnp.int32, x.shape, axis)
    for axis in (0, 1)
  )
  x = jnp.where((row < size[0]) & (column < size[1]), x, 0)
  return x.reshape(-1, x.shape[-1])


def _read_queries(ref, plan: _Plan, lanes: slice):
  first = [pl.program_id(1 + axis) * plan.band[axis] for axis in (0, 1)]
  return _inside(ref[0, :, :, lanes], first, plan.problem.queries)


def _key_index(plan: _Plan, lanes: slice):
  row = plan.first_keys(pl.program_id(1), 0)
  column = pl.multiple_of(plan.first_keys(pl.program_id(2), 1), _SUBLANES)
  return pl.ds(row, plan.span[0]), pl.ds(column, plan.span[1]), lanes


def _read_keys(ref, plan: _Plan, lanes: slice):
  rows, columns, lanes = _key_index(plan, lanes)
  return _inside(
    ref[0, rows, columns, lanes], (rows.start, columns.start), plan.problem.keys
  )


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
  log_counts = _log_counts(plan, rows_ref, columns_ref)
  for lanes in plan.groups:
    q = _spread(_read_queries(q_ref, plan, lanes), plan.problem.depth)
    logits = _dot(q, _read_keys(k_ref, plan, lanes), 1, 1)
    weights = _softmax(logits, log_counts).astype(v_ref.dtype)
    out = _dot(weights, _read_keys(v_ref, plan, lanes), 1, 0)
    out = _collect(out, plan.problem.depth).astype(out_ref.dtype)
    out_ref[0, :, :, lanes] = out.reshape(*plan.band, -1)


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
  programs = [pl.program_id(axis) for axis in (1, 2)]
  bands = [pl.num_programs(axis) for axis in (1, 2)]

  @pl.when((programs[0] == 0) & (programs[1] == 0))
  def _():
    dk_sum[...] = jnp.zeros_like(dk_sum)
    dv_sum[...] = jnp.zeros_like(dv_sum)

  log_counts = _log_counts(plan, rows_ref, columns_ref)
  for lanes in plan.groups:
    q = _spread(_read_queries(q_ref, plan, lanes), plan.problem.depth)
    dout = _spread(_read_queries(dout_ref, plan, lanes), plan.problem.depth)
    k = _read_keys(k_ref, plan, lanes)
    v = _read_keys(v_ref, plan, lanes)
    weights = _softmax(_dot(q, k, 1, 1), log_counts)
    dweights = _dot(dout, v, 1, 1)
    mean = (weights * dweights).sum(-1, keepdims=True)
    dlogits = (weights * (dweights - mean)).astype(k.dtype)
    dq = _collect(_dot(dlogits, k, 1, 0), plan.problem.depth)
    dq_ref[0, :, :, lanes] = dq.astype(dq_ref.dtype).reshape(*plan.band, -1)
    index = _key_index(plan, lanes)
    shape = (*plan.span, -1)
    dk_sum[index] += _dot(dlogits, q, 0, 0).reshape(shape)
    dv_sum[index] += _dot(weights.astype(dout.dtype), dout, 0, 0).reshape(shape)

  @pl.when((programs[0] == bands[0] - 1) & (programs[1] == bands[1] - 1))
  def _():
    dk_ref[0] = dk_sum[...].astype(dk_ref.dtype)
    dv_ref[0] = dv_sum[...].astype(dv_ref.dtype)


def _map_bytes(size, channels: int, itemsize: int) -> int:
  """Bytes of a map in tiled memory."""
  rows, columns = size
  columns = _round_up(columns, _SUBLANES)
  return rows * columns * _round_up(channels, _LANES) * itemsize


def _vmem_bytes(plan: _Plan) -> int:
  """What the backward kernel holds at once, up to a few percent."""
  itemsize = plan.problem.dtypes[1].itemsize
  keys = _map_bytes(plan.problem.keys, plan.channels, 1)
  band = _map_bytes(plan.band, plan.channels, itemsize)
  heads = plan.groups[0].stop // plan.problem.depth
  logits = heads * math.prod(plan.band + plan.span) * 4
  # k, v, dk, dv and three bands are fetched and stored while others compute.
  return keys * (2 * 4 * itemsize + 2 * 4) + 2 * 3 * band + 6 * logits


def why_not(problem: geometry.Problem) -> str | None:
  """Reason why the kernels cannot serve: dtypes, or the memory of the chip."""
  if problem.varying:
    return f'of the kernel for TPU, {sharding.WHY_NOT_VARYING}'
  dtype = problem.dtypes[1]
  if dtype not in (jnp.bfloat16, jnp.float32):
    return f'the kernel for TPU takes float32 and bfloat16, not {dtype}.'
  needed = _vmem_bytes(_make_plan(problem))
  if needed > _VMEM:
    return (
      f'the kernel for TPU would need {needed / _MIB:.0f} MiB on chip for maps '
      f'of {problem.keys}; {_VMEM / _MIB:.0f} are allowed.'
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
  plan = _make_plan(static[0])

  def call(q, k, v):
    counts = _count_tables(plan)
    query, key, tables = _specs(plan, counts)
    merged = [_merge_heads(x) for x in (q, k, v)]
    [out] = fused.call(
      functools.partial(_forward_kernel, plan=plan),
      'tpu',
      merged + counts,
      [jax.ShapeDtypeStruct(merged[0].shape, v.dtype)],
      static[1],
      grid=(q.shape[0], *plan.grid),
      in_specs=[query, key, key, *tables],
      out_specs=[query],
      name='local_attention',
      **_parameters(plan, q.shape[0], queries=2, keys=2, products=2),
    )
    return out.reshape(q.shape)

  return sharding.split_images(call, q, k, v), ()


def _backward(static, inputs, _, dout):
  plan = _make_plan(static[0])

  def call(q, k, v, dout):
    counts = _count_tables(plan)
    query, key, tables = _specs(plan, counts)
    merged = [_merge_heads(x) for x in (q, k, v)]
    dq, dk, dv = fused.call(
      functools.partial(_backward_kernel, plan=plan),
      'tpu',
      [*merged, *counts, _merge_heads(dout)],
      [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in merged],
      static[1],
      grid=(q.shape[0], *plan.grid),
      in_specs=[query, key, key, *tables, query],
      out_specs=[query, key, key],
      scratch_shapes=[pltpu.VMEM(key.block_shape[1:], jnp.float32)] * 2,
      name='local_attention_gradients',
      **_parameters(plan, q.shape[0], queries=3, keys=4, products=5),
    )
    return dq.reshape(q.shape), dk.reshape(k.shape), dv.reshape(v.shape)

  return sharding.split_images(call, *inputs, dout)


_attend = fused.define(_forward, _backward)

# Slow: the kernels as plain operations, for tests.
interpret = functools.partial(attend, interpret=True)


def _merge_heads(x):
  return x.reshape(*x.shape[:3], -1)


def _specs(plan: _Plan, counts):
  """Blocks of a program: of queries, of keys (a whole map), of both counts."""
  rows, columns = plan.problem.keys
  keys = rows, _round_up(columns, _SUBLANES)
  return (
    pl.BlockSpec((1, *plan.band, plan.channels), lambda b, i, j: (b, i, j, 0)),
    pl.BlockSpec((1, *keys, plan.channels), lambda b, i, j: (b, 0, 0, 0)),
    [pl.BlockSpec(x.shape, lambda b, i, j: (0, 0, 0)) for x in counts],
  )


def _parameters(
  plan: _Plan, batch: int, *, queries: int, keys: int, products: int
):
  """Compiler parameters and cost of a call on so many maps and products."""
  problem, channels = plan.problem, plan.channels
  itemsize = problem.dtypes[1].itemsize
  pairs = batch * math.prod(plan.grid + plan.band + plan.span)
  group = plan.groups[0].stop
  moved = queries * _map_bytes(problem.queries, channels, itemsize)
  moved += keys * _map_bytes(problem.keys, channels, itemsize)
  return dict(
    cost_estimate=pl.CostEstimate(
      flops=2 * products * pairs * problem.heads * group,
      transcendentals=pairs * problem.heads,
      bytes_accessed=batch * moved,
    ),
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=('parallel', 'arbitrary', 'arbitrary'),
      vmem_limit_bytes=max(16 * _MIB, _vmem_bytes(plan)),
    ),
  )
