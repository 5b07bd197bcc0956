"""Local attention, one tile of queries after the other.

The queries of a tile see a rectangle of keys in common. What is added to the
logits leaves each query its window and counts the keys that the border mirrors
into it, so nothing is padded. A step takes the same one or four tiles of every
image and head; the batch is never cut, as it may be spread over devices.
The backward pass computes the weights again from their log-sum-exp.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from acmix_jax.ops import loops, windows
from acmix_jax.ops.local_attention import window_counts

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


@dataclasses.dataclass(frozen=True)
class _Side:
  """How one side of a map is cut into tiles.

  Attributes:
    size: keys along the side.
    queries: of one tile.
    kernel_size: keys in a window.
    strides: keys between queries.
    dilation: keys between neighbours in a window.
  """

  size: int
  queries: int
  kernel_size: int
  strides: int
  dilation: int

  @property
  def count(self) -> int:
    """Tiles along the side."""
    return -(-windows.output_size(self.size, self.strides) // self.queries)

  @property
  def reach(self) -> int:
    """Keys that a window extends beyond its centre."""
    return windows.padding(self.kernel_size, self.dilation)

  @property
  def keys(self) -> int:
    """Keys of one tile."""
    reached = (self.queries - 1) * self.strides + 2 * self.reach + 1
    return min(self.size, reached)

  def first_key(self, tile: jax.Array | np.ndarray) -> jax.Array:
    """The first of the keys of a tile; at a border the tile moves inwards."""
    first = tile * (self.queries * self.strides) - self.reach
    return jnp.clip(first, 0, self.size - self.keys)

  def log_counts(self) -> tuple[np.ndarray, np.ndarray]:
    """Tables [tables, queries, keys], and which one each tile takes [count].

    A tile inside looks the same as its neighbour; few tables differ.
    """
    with jax.ensure_compile_time_eval():
      tiles = np.arange(self.count)[:, None, None]
      query = tiles * self.queries + np.arange(self.queries)[None, :, None]
      key = self.first_key(tiles) + np.arange(self.keys)[None, None, :]
      counts = window_counts.log_counts(
        query * self.strides,
        key,
        self.size,
        self.kernel_size,
        self.dilation,
      )
      tables, index = np.unique(counts, axis=0, return_inverse=True)
    return tables, index.reshape(-1).astype(np.int32)


def attend(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  kernel_size: int,
  strides: int,
  dilation: int,
) -> jax.Array:
  """Attention of queries [b, ho, wo, n, d] over scaled [b, h, w, n, d]."""
  height, width = q.shape[1:3]
  rows, columns = (
    _cut(size, kernel_size, strides, dilation) for size in k.shape[1:3]
  )
  missing = (
    (0, rows.count * rows.queries - height),
    (0, columns.count * columns.queries - width),
  )
  q = jnp.pad(q, ((0, 0), *missing, (0, 0), (0, 0)))
  return _attend(rows, columns, q, k, v)[:, :height, :width]


def _cut(size, *window):
  """Cuts a side so that the fewest products are computed."""
  sides = [_Side(size, queries, *window) for queries in _SIZES]
  return min(sides, key=lambda side: side.count * side.queries * side.keys)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(rows, columns, q, k, v):
  return _attend_forward(rows, columns, q, k, v)[0]


def _attend_forward(rows, columns, q, k, v):
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

  start = loops.zeros(q).astype(v.dtype), loops.zeros(q[..., :1])
  out, logsumexp = _loop(rows, columns, attend_tile, start)
  return out, (q, k, v, out, logsumexp)


def _attend_backward(rows, columns, residuals, to_out):
  q, k, v, out, logsumexp = residuals
  # What the softmax takes from the gradients of a query's weights.
  mean = _product('bhwnd,bhwnd->bhwn', out, to_out)[..., None]

  def differentiate_tile(tile, carry):
    to_q, to_k, to_v = carry
    q_tile, to_tile = _get(q, tile.queries), _get(to_out, tile.queries)
    k_tile, v_tile = _get(k, tile.keys), _get(v, tile.keys)
    logits = tile.bias + _product('tqd,tkd->tqk', q_tile, k_tile)
    weights = jnp.exp(logits - _get(logsumexp, tile.queries))
    to_weights = _product('tqd,tkd->tqk', to_tile, v_tile)
    to_weights = to_weights - _get(mean, tile.queries)
    to_logits = (weights * to_weights).astype(q.dtype)
    to_q_tile = _product('tqk,tkd->tqd', to_logits, k_tile)
    # XLA's fast products on CPU sum over the last axis of what is on the left,
    # so it is the small tiles that are transposed.
    q_tile = _get_transposed(q, tile.queries)
    to_k_tile = _product('tdq,tqk->tdk', q_tile, to_logits)
    to_tile = _get_transposed(to_out, tile.queries)
    to_v_tile = _product('tdq,tqk->tdk', to_tile, weights.astype(q.dtype))
    return (
      _put(to_q, to_q_tile, tile.queries),
      _add_transposed(to_k, to_k_tile, tile.keys),
      _add_transposed(to_v, to_v_tile, tile.keys),
    )

  start = loops.zeros(q), loops.zeros(k), loops.zeros(v)
  to_q, to_k, to_v = _loop(rows, columns, differentiate_tile, start)
  return to_q.astype(q.dtype), to_k.astype(k.dtype), to_v.astype(v.dtype)


_attend.defvjp(_attend_forward, _attend_backward)


class _Place(NamedTuple):
  """A rectangle of pixels: its first row and column, and its size."""

  first: tuple[jax.Array, jax.Array]
  size: tuple[int, int]


class _Tile(NamedTuple):
  """Where a tile has its queries and keys.

  Attributes:
    queries: place of the queries.
    keys: place of the keys.
    bias: added to the logits [1, queries, keys].
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
