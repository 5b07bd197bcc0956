"""Local attention as two Pallas kernels for TPU.

A program takes a band of queries of one image and the rectangle of keys that
the band reaches. They are multiplied densely on the matrix unit; a key outside
a query's window has a log count of -inf. The logits never leave the chip, and
since a program holds all keys of its queries, the backward kernel recomputes
the softmax from q, k and v: nothing else is saved.

Heads stay side by side in the lanes, [b, h, w, n * d]: a last axis of d < 128
would be padded to 128 in memory. Zeros in the other heads' lanes of q cut a
product to one head.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from acmix_jax.ops import windows
from acmix_jax.ops.local_attention import window_counts

_LANES = 128
# Columns are cut at multiples of a register's rows of 16-bit numbers.
_SUBLANES = 16
# Queries of a program, and the widest map whose rows are not cut.
_QUERIES = 128
_UNCUT = 64
_MIB = 2**20
# A core has 16 (v2 to v4), 64 (v5p, v7) or 128 MiB (v5e, v6e).
_VMEM = 56 * _MIB


def _round_up(size: int, multiple: int) -> int:
  return -(-size // multiple) * multiple


class _Plan(NamedTuple):
  """How two maps are cut into programs; all are static.

  Attributes:
    queries: rows and columns of the map of queries.
    keys: rows and columns of the map of keys.
    heads: number of heads.
    depth: channels of a head.
    kernel_size: side of a window.
    strides: pixels between queries.
    dilation: pixels between keys.
    band: rows and columns of the queries of a program.
    span: rows and columns of the keys of a program.
  """

  queries: tuple[int, int]
  keys: tuple[int, int]
  heads: int
  depth: int
  kernel_size: int
  strides: int
  dilation: int
  band: tuple[int, int]
  span: tuple[int, int]

  @property
  def grid(self) -> tuple[int, int]:
    return tuple(
      -(-size // step)
      for size, step in zip(self.queries, self.band, strict=True)
    )

  @property
  def groups(self) -> list[slice]:
    """Lanes of whole heads that one product takes: a register, if possible."""
    channels = self.heads * self.depth
    if _LANES % self.depth == 0 or self.depth % _LANES == 0:
      size = max(_LANES, self.depth)
    else:
      size = channels
    return [
      slice(first, min(first + size, channels))
      for first in range(0, channels, size)
    ]

  def first_keys(self, band, axis: int):
    """First row (axis 0) or column (1) of keys of the band of that number."""
    last = self.keys[0] - self.span[0]
    align = 1
    if axis == 1:
      last = _round_up(self.keys[1], _SUBLANES) - self.span[1]
      align = _SUBLANES
    reach = windows.padding(self.kernel_size, self.dilation)
    first = band * (self.band[axis] * self.strides) - reach
    return first.clip(0, last) & -align


def _plan(q, k, kernel_size: int, strides: int, dilation: int) -> _Plan:
  _, ho, wo, heads, depth = q.shape
  h, w = k.shape[1:3]
  columns = _round_up(wo, _SUBLANES)
  if columns > _UNCUT:
    columns = _UNCUT // 2
  bands = -(-ho // max(1, _QUERIES // columns))
  rows = -(-ho // bands)
  extent = 2 * windows.padding(kernel_size, dilation) + 1
  # A cut starts up to _SUBLANES - 1 columns before the first key it needs.
  needed = (columns - 1) * strides + extent + _SUBLANES - 1
  return _Plan(
    queries=(ho, wo),
    keys=(h, w),
    heads=heads,
    depth=depth,
    kernel_size=kernel_size,
    strides=strides,
    dilation=dilation,
    band=(rows, columns),
    span=(
      min(h, (rows - 1) * strides + extent),
      _round_up(min(w, needed), _SUBLANES),
    ),
  )


def _count_tables(plan: _Plan) -> list[jax.Array]:
  """Log counts by row and by column [bands, band, span rows * columns]."""
  key = jnp.arange(plan.span[0] * plan.span[1])
  lines = key // plan.span[1], key % plan.span[1]
  tables = []
  for axis, line in enumerate(lines):
    bands = jnp.arange(plan.grid[axis])[:, None, None]
    query = bands * plan.band[axis] + jnp.arange(plan.band[axis])[None, :, None]
    # Queries beyond the map are the last one again, so that each has a key.
    query = query.clip(max=plan.queries[axis] - 1) * plan.strides
    key = plan.first_keys(bands, axis) + line[None, None]
    size = plan.keys[axis]
    tables.append(
      window_counts.log_counts(
        query, key, size, plan.kernel_size, plan.dilation
      )
    )
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
  return _inside(ref[0, :, :, lanes], first, plan.queries)


def _key_index(plan: _Plan, lanes: slice):
  row = plan.first_keys(pl.program_id(1), 0)
  column = pl.multiple_of(plan.first_keys(pl.program_id(2), 1), _SUBLANES)
  return pl.ds(row, plan.span[0]), pl.ds(column, plan.span[1]), lanes


def _read_keys(ref, plan: _Plan, lanes: slice):
  rows, columns, lanes = _key_index(plan, lanes)
  return _inside(
    ref[0, rows, columns, lanes], (rows.start, columns.start), plan.keys
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


def _dot(x, y, axis_x: int, axis_y: int) -> jax.Array:
  axes = ((axis_x,), (axis_y,)), ((), ())
  return lax.dot_general(x, y, axes, preferred_element_type=jnp.float32)


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
    q = _spread(_read_queries(q_ref, plan, lanes), plan.depth)
    logits = _dot(q, _read_keys(k_ref, plan, lanes), 1, 1)
    weights = _softmax(logits, log_counts).astype(v_ref.dtype)
    out = _dot(weights, _read_keys(v_ref, plan, lanes), 1, 0)
    out = _collect(out, plan.depth).astype(out_ref.dtype)
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
    q = _spread(_read_queries(q_ref, plan, lanes), plan.depth)
    dout = _spread(_read_queries(dout_ref, plan, lanes), plan.depth)
    k = _read_keys(k_ref, plan, lanes)
    v = _read_keys(v_ref, plan, lanes)
    weights = _softmax(_dot(q, k, 1, 1), log_counts)
    dweights = _dot(dout, v, 1, 1)
    mean = (weights * dweights).sum(-1, keepdims=True)
    dlogits = (weights * (dweights - mean)).astype(k.dtype)
    dq = _collect(_dot(dlogits, k, 1, 0), plan.depth).astype(dq_ref.dtype)
    dq_ref[0, :, :, lanes] = dq.reshape(*plan.band, -1)
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


def _vmem_bytes(plan: _Plan, itemsize: int) -> int:
  """What the backward kernel holds at once, up to a few percent."""
  channels = plan.heads * plan.depth
  keys = _map_bytes(plan.keys, channels, 1)
  band = _map_bytes(plan.band, channels, itemsize)
  heads = plan.groups[0].stop // plan.depth
  logits = heads * math.prod(plan.band + plan.span) * 4
  # k, v, dk, dv and three bands are fetched and stored while others compute.
  return keys * (2 * 4 * itemsize + 2 * 4) + 2 * 3 * band + 6 * logits


def supports(q, k, kernel_size: int, strides: int, dilation: int) -> bool:
  """Whether dtypes are those of the chip and an image fits in its memory."""
  plan = _plan(q, k, kernel_size, strides, dilation)
  return (
    k.dtype in (jnp.bfloat16, jnp.float32)
    and _vmem_bytes(plan, k.dtype.itemsize) <= _VMEM
  )


def _specs(plan: _Plan, counts):
  """Blocks of a program: of queries, of keys (a whole map), of both counts."""
  channels = plan.heads * plan.depth
  keys = (plan.keys[0], _round_up(plan.keys[1], _SUBLANES))
  return (
    pl.BlockSpec((1, *plan.band, channels), lambda b, i, j: (b, i, j, 0)),
    pl.BlockSpec((1, *keys, channels), lambda b, i, j: (b, 0, 0, 0)),
    [pl.BlockSpec(x.shape, lambda b, i, j: (0, 0, 0)) for x in counts],
  )


def _parameters(
  plan: _Plan, batch: int, itemsize: int, queries, keys, products
):
  """Compiler parameters and cost of a call.

  Args:
    plan: how maps are cut.
    batch: number of images.
    itemsize: bytes of a number.
    queries: maps of queries read or written.
    keys: maps of keys read or written.
    products: matrix products of queries and keys.
  """
  channels = plan.heads * plan.depth
  pairs = batch * math.prod(plan.grid + plan.band + plan.span)
  group = plan.groups[0].stop
  moved = queries * _map_bytes(plan.queries, channels, itemsize)
  moved += keys * _map_bytes(plan.keys, channels, itemsize)
  return dict(
    cost_estimate=pl.CostEstimate(
      flops=2 * products * pairs * plan.heads * group,
      transcendentals=pairs * plan.heads,
      bytes_accessed=batch * moved,
    ),
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=('parallel', 'arbitrary', 'arbitrary'),
      vmem_limit_bytes=max(16 * _MIB, _vmem_bytes(plan, itemsize)),
    ),
  )


def _merge(x):
  return x.reshape(*x.shape[:3], -1)


def forward(q, k, v, kernel_size, strides, dilation, interpret=False):
  """Attention of q [b, ho, wo, n, d] over k, v [b, h, w, n, d].

  Args:
    q: queries, strided.
    k: keys, scaled.
    v: values.
    kernel_size: odd side of the window.
    strides: pixels between queries.
    dilation: pixels between neighbouring keys of a window.
    interpret: whether to run as plain operations, on any machine.

  Returns:
    [b, ho, wo, n, d] in the dtype of v.
  """
  plan = _plan(q, k, kernel_size, strides, dilation)
  counts = _count_tables(plan)
  query, key, tables = _specs(plan, counts)
  out = pl.pallas_call(
    functools.partial(_forward_kernel, plan=plan),
    grid=(q.shape[0], *plan.grid),
    in_specs=[query, key, key, *tables],
    out_specs=query,
    out_shape=jax.ShapeDtypeStruct(_merge(q).shape, v.dtype),
    interpret=interpret,
    name='local_attention',
    **_parameters(plan, q.shape[0], k.dtype.itemsize, 2, 2, 2),
  )(_merge(q), _merge(k), _merge(v), *counts)
  return out.reshape(q.shape)


def backward(q, k, v, dout, kernel_size, strides, dilation, interpret=False):
  """Gradients of q, k and v, given that of the output of `forward`."""
  plan = _plan(q, k, kernel_size, strides, dilation)
  counts = _count_tables(plan)
  query, key, tables = _specs(plan, counts)
  merged = [_merge(x) for x in (q, k, v)]
  total = pltpu.VMEM(key.block_shape[1:], jnp.float32)
  gradients = pl.pallas_call(
    functools.partial(_backward_kernel, plan=plan),
    grid=(q.shape[0], *plan.grid),
    in_specs=[query, key, key, *tables, query],
    out_specs=[query, key, key],
    out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in merged],
    scratch_shapes=[total, total],
    interpret=interpret,
    name='local_attention_gradients',
    **_parameters(plan, q.shape[0], k.dtype.itemsize, 3, 4, 5),
  )(*merged, *counts, _merge(dout))
  return tuple(
    gradient.reshape(x.shape)
    for gradient, x in zip(gradients, (q, k, v), strict=True)
  )
