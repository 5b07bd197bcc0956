"""Local attention, one tile of queries after the other.

The queries of a tile see a rectangle of keys in common. What is added to the
logits leaves each query its window and counts the keys that the border mirrors
into it, so nothing is padded. A step takes the same one or four tiles of every
image and head; the batch is never cut, as it may be spread over devices.
The backward pass computes the weights again from their log-sum-exp.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from acmix_jax.ops import derivatives, xla_cpu
from acmix_jax.ops.local_attention import geometry

# Queries along a side of a tile. A smaller tile masks fewer products, a larger
# one copies fewer keys; on CPU 4 was the fastest of 4, 5, 7 and 8 unless a
# larger one covers the side better.
_SIZES = (4, 5, 6, 7)
# Tiles in one step of the loop. XLA on CPU hands part of a step to another core
# when more than eight of its operations are ready at once; one tile has too
# few. Where four see more than half of the map, what they copy of it costs as
# much as the second core gains.
_TOGETHER = 4
_MASKED = np.float32(-1e30)

_product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


class _Side(NamedTuple):
  """How one side of a map is cut into tiles.

  Attributes:
    problem: Sizes of the maps and the window.
    axis: 0 for rows, 1 for columns.
    queries: Queries of one tile.
  """

  problem: geometry.Problem
  axis: int
  queries: int

  @property
  def size(self) -> int:
    """Keys along the side."""
    return self.problem.keys[self.axis]

  @property
  def count(self) -> int:
    """Tiles along the side."""
    return -(-self.problem.queries[self.axis] // self.queries)

  @property
  def keys(self) -> int:
    """Keys of one tile."""
    span = (self.queries - 1) * self.problem.strides + self.problem.extent
    return min(self.size, span)

  @property
  def missing(self) -> int:
    """Queries of the last tile that the map does not have."""
    return self.count * self.queries - self.problem.queries[self.axis]

  def first_key(self, tile: jax.Array | np.ndarray) -> jax.Array:
    """The first of the keys of a tile; at a border the tile moves inwards."""
    first = tile * (self.queries * self.problem.strides) - self.problem.reach
    return jnp.clip(first, 0, self.size - self.keys)

  def log_counts(self) -> tuple[np.ndarray, np.ndarray]:
    """Tables [tables, queries, keys], and which one each tile takes [count].

    A tile inside looks the same as its neighbour; few tables differ.
    """
    with jax.ensure_compile_time_eval():
      tiles = np.arange(self.count)[:, None, None]
      query = tiles * self.queries + np.arange(self.queries)[None, :, None]
      key = self.first_key(tiles) + np.arange(self.keys)[None, None, :]
      counts = geometry.log_counts(
        query * self.problem.strides, key, self.size, self.problem
      )
      tables, index = np.unique(counts, axis=0, return_inverse=True)
    return tables, index.reshape(-1).astype(np.int32)


def attend(
  problem: geometry.Problem,
  q: Float[Array, 'b ho wo n d'],
  k: Float[Array, 'b h w n d'],
  v: Float[Array, 'b h w n d'],
) -> Float[Array, 'b ho wo n d']:
  """Attention of each query over the window around it, reflected at borders.

  Args:
    problem: Sizes of the arrays and the window.
    q: Queries.
    k: Keys, scaled.
    v: Values.

  Returns:
    Sums of values in the dtype of v.
  """
  return _attend(problem, q, k, v)


def general(
  problem: geometry.Problem,
  q: Float[Array, 'b ho wo n d'],
  k: Float[Array, 'b h w n d'],
  v: Float[Array, 'b h w n d'],
) -> Float[Array, 'b ho wo n d']:
  """`attend` without a gradient of its own: jax differentiates the loop."""
  return _forward(problem, q, k, v)[0]


def _cut(problem):
  """Cuts both sides so that the fewest products are computed."""
  return [
    min(
      (_Side(problem, axis, queries) for queries in _SIZES),
      key=lambda side: side.count * side.queries * side.keys,
    )
    for axis in (0, 1)
  ]


def _pad(x, rows, columns):
  """Adds the queries that whole tiles need."""
  return jnp.pad(
    x, ((0, 0), (0, rows.missing), (0, columns.missing), (0, 0), (0, 0))
  )


def _forward(problem, q, k, v):
  rows, columns = _cut(problem)
  q = _pad(q, rows, columns)

  def attend_tile(tile, carry):
    out, logsumexp = carry
    logits = tile.bias + _product(
      'tqd,tkd->tqk', _get(q, tile.queries), _get(k, tile.keys)
    )
    greatest = jnp.max(logits, axis=-1, keepdims=True)
    weights = jnp.exp(logits - greatest)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    values = _get(v, tile.keys)
    sums = _product('tqk,tkd->tqd', weights.astype(v.dtype), values)
    return (
      _put(out, sums / total, tile.queries),
      _put(logsumexp, greatest + jnp.log(total), tile.queries),
    )

  start = xla_cpu.zeros(q).astype(v.dtype), xla_cpu.zeros(q[..., :1])
  out, logsumexp = _loop(rows, columns, attend_tile, start)
  height, width = problem.queries
  return out[:, :height, :width], (q, out, logsumexp)


def _backward(problem, inputs, saved, dout):
  rows, columns = _cut(problem)
  _, k, v = inputs
  q, out, logsumexp = saved
  dout = _pad(dout, rows, columns)
  # What the softmax takes from the gradients of a query's weights.
  mean = _product('bhwnd,bhwnd->bhwn', out, dout)[..., None]

  def differentiate_tile(tile, carry):
    dq, dk, dv = carry
    q_tile, dout_tile = _get(q, tile.queries), _get(dout, tile.queries)
    k_tile, v_tile = _get(k, tile.keys), _get(v, tile.keys)
    logits = tile.bias + _product('tqd,tkd->tqk', q_tile, k_tile)
    weights = jnp.exp(logits - _get(logsumexp, tile.queries))
    dweights = _product('tqd,tkd->tqk', dout_tile, v_tile)
    dlogits = weights * (dweights - _get(mean, tile.queries))
    dlogits = dlogits.astype(q.dtype)
    dq_tile = _product('tqk,tkd->tqd', dlogits, k_tile)
    # XLA's fast products on CPU sum over the last axis of what is on the left,
    # so it is the small tiles that are transposed.
    q_tile = _get_transposed(q, tile.queries)
    dk_tile = _product('tdq,tqk->tdk', q_tile, dlogits)
    dout_tile = _get_transposed(dout, tile.queries)
    dv_tile = _product('tdq,tqk->tdk', dout_tile, weights.astype(q.dtype))
    return (
      _put(dq, dq_tile, tile.queries),
      _add_transposed(dk, dk_tile, tile.keys),
      _add_transposed(dv, dv_tile, tile.keys),
    )

  start = xla_cpu.zeros(q), xla_cpu.zeros(k), xla_cpu.zeros(v)
  dq, dk, dv = _loop(rows, columns, differentiate_tile, start)
  height, width = problem.queries
  return (
    dq[:, :height, :width].astype(q.dtype),
    dk.astype(k.dtype),
    dv.astype(v.dtype),
  )


_attend = derivatives.define(_forward, _backward, general)


class _Place(NamedTuple):
  """A rectangle of pixels.

  Attributes:
    first: Its first row and column.
    size: Its rows and columns.
  """

  first: tuple[jax.Array, jax.Array]
  size: tuple[int, int]


class _Tile(NamedTuple):
  """Where a tile has its queries and keys.

  Attributes:
    queries: Place of the queries.
    keys: Place of the keys.
    bias: Log counts [1, queries, keys], added to the logits.
  """

  queries: _Place
  keys: _Place
  bias: jax.Array


def _loop(rows, columns, body, start):
  """Calls body(tile, carry) for each tile."""
  row_tables, row_index = rows.log_counts()
  column_tables, column_index = columns.log_counts()
  tables = (
    row_tables[:, None, :, None, :, None]
    + column_tables[None, :, None, :, None, :]
  )
  tables = np.maximum(tables, _MASKED).reshape(
    len(row_tables), len(column_tables), rows.queries * columns.queries, -1
  )

  def step(number, carry):
    i, j = number // columns.count, number % columns.count
    table = jnp.asarray(row_index)[i], jnp.asarray(column_index)[j]
    tile = _Tile(
      _Place(
        (i * rows.queries, j * columns.queries), (rows.queries, columns.queries)
      ),
      _Place(
        (rows.first_key(i), columns.first_key(j)), (rows.keys, columns.keys)
      ),
      jnp.asarray(tables)[table][None],
    )
    return body(tile, carry)

  pixels, keys = rows.size * columns.size, rows.keys * columns.keys
  together = _TOGETHER if _TOGETHER * keys <= pixels // 2 else 1
  return lax.fori_loop(
    0, rows.count * columns.count, step, start, unroll=together
  )


def _slice(x, place):
  b, _, _, n, d = x.shape
  return lax.dynamic_slice(x, (0, *place.first, 0, 0), (b, *place.size, n, d))


def _update(x, pixels, place):
  return lax.dynamic_update_slice(
    x, pixels.astype(x.dtype), (0, *place.first, 0, 0)
  )


def _get(x, place):
  """The pixels of a place of [b, h, w, n, d] as [b * n, pixels, d]."""
  b, _, _, n, d = x.shape
  return _slice(x, place).transpose(0, 3, 1, 2, 4).reshape(b * n, -1, d)


def _get_transposed(x, place):
  """The pixels of a place of [b, h, w, n, d] as [b * n, d, pixels]."""
  b, _, _, n, d = x.shape
  return _slice(x, place).transpose(0, 3, 4, 1, 2).reshape(b * n, d, -1)


def _put(x, tile, place):
  """Writes pixels of `_get` back into their place."""
  b, _, _, n, d = x.shape
  pixels = tile.reshape(b, n, *place.size, d).transpose(0, 2, 3, 1, 4)
  return _update(x, pixels, place)


def _add_transposed(x, tile, place):
  """Adds pixels of `_get_transposed` to those at their place."""
  b, _, _, n, d = x.shape
  pixels = tile.reshape(b, n, d, *place.size).transpose(0, 3, 4, 1, 2)
  return _update(x, _slice(x, place) + pixels, place)
