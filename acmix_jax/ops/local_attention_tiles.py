"""Local attention, one tile of queries after the other.

The queries of a tile see a square of keys in common, of which a constant mask
leaves each its window. A step of the loop takes the same tile of every image
and head; the batch is never cut, as it may be spread over devices. The
backward pass computes the weights again from their log-sum-exp.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from acmix_jax.ops import windows

# Queries along a side of a tile. A smaller tile masks fewer products, a larger
# one copies fewer keys; 4 was the fastest of 4, 7 and 8 on CPU.
_TILE = 4
_MASKED = np.float32(-1e30)

_product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


@dataclasses.dataclass(frozen=True)
class _Side:
  """How one side of a map is cut into tiles.

  Attributes:
    count: tiles along the side.
    queries: of one tile.
    strides: keys between queries.
    dilation: keys between neighbours in a window.
    reach: keys from the first to the last of a window.
  """

  count: int
  queries: int
  strides: int
  dilation: int
  reach: int

  @property
  def keys(self) -> int:
    """Keys that the windows of one tile cover."""
    return (self.queries - 1) * self.strides + self.reach + 1

  @property
  def step(self) -> int:
    """Keys from one tile to the next."""
    return self.queries * self.strides

  def mask(self) -> np.ndarray:
    """Whether a key is in the window of a query [queries, keys]."""
    first = self.strides * np.arange(self.queries)[:, None]
    offset = np.arange(self.keys) - first
    inside = (offset >= 0) & (offset <= self.reach)
    return inside & (offset % self.dilation == 0)


def attend(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  kernel_size: int,
  strides: int,
  dilation: int,
) -> jax.Array:
  """Attention of scaled queries [b, ho, wo, n, d] over [b, h, w, n, d]."""
  h, w = q.shape[1:3]
  reach = (kernel_size - 1) * dilation

  def cut(length):
    count = -(-length // _TILE)
    return _Side(count, -(-length // count), strides, dilation, reach)

  rows, columns = cut(h), cut(w)

  def cover(x):
    x = windows.reflect(x, windows.padding(kernel_size, dilation))
    height = (rows.count - 1) * rows.step + rows.keys
    return _grow(x, height, (columns.count - 1) * columns.step + columns.keys)

  q = _grow(q, rows.count * rows.queries, columns.count * columns.queries)
  return _attend(rows, columns, q, cover(k), cover(v))[:, :h, :w]


def _grow(x, height, width):
  """Adds zeros at the bottom and right; rows no window needs are cut off."""
  missing = [max(0, height - x.shape[1]), max(0, width - x.shape[2])]
  edges = ((0, 0), (0, missing[0]), (0, missing[1]), (0, 0), (0, 0))
  return jnp.pad(x, edges)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(rows, columns, q, k, v):
  return _attend_forward(rows, columns, q, k, v)[0]


def _attend_forward(rows, columns, q, k, v):
  bias = _bias(rows, columns)

  def attend_tile(queries, keys, carry):
    out, logsumexp = carry
    logits = bias + _product('tqd,tkd->tqk', _get(q, queries), _get(k, keys))
    total = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    weights = jnp.exp(logits - total).astype(v.dtype)
    tile = _product('tqk,tkd->tqd', weights, _get(v, keys))
    return _put(out, tile, queries), _put(logsumexp, total, queries)

  start = jnp.zeros_like(q, v.dtype), jnp.zeros_like(q[..., :1], jnp.float32)
  out, logsumexp = _loop(rows, columns, attend_tile, start)
  return out, (q, k, v, out, logsumexp)


def _attend_backward(rows, columns, residuals, to_out):
  q, k, v, out, logsumexp = residuals
  bias = _bias(rows, columns).swapaxes(1, 2)

  def differentiate_tile(queries, keys, carry):
    to_q, to_k, to_v = carry
    q_tile, to_tile = _get(q, queries), _get(to_out, queries)
    k_tile, v_tile = _get(k, keys), _get(v, keys)
    mean = _product('tqd,tqd->tq', _get(out, queries), to_tile)[:, None]
    # Keys by queries: three of the five products then read rows as they lie.
    logits = bias + _product('tkd,tqd->tkq', k_tile, q_tile)
    weights = jnp.exp(logits - _get(logsumexp, queries).swapaxes(1, 2))
    to_weights = _product('tkd,tqd->tkq', v_tile, to_tile) - mean
    to_logits = (weights * to_weights).astype(q.dtype)
    to_q_tile = _product('tkq,tkd->tqd', to_logits, k_tile)
    to_k_tile = _product('tkq,tqd->tkd', to_logits, q_tile)
    to_v_tile = _product('tkq,tqd->tkd', weights.astype(q.dtype), to_tile)
    return (
      _put(to_q, to_q_tile, queries),
      _put(to_k, _get(to_k, keys) + to_k_tile, keys),
      _put(to_v, _get(to_v, keys) + to_v_tile, keys),
    )

  start = (
    jnp.zeros_like(q),
    jnp.zeros_like(k, jnp.float32),
    jnp.zeros_like(v, jnp.float32),
  )
  to_q, to_k, to_v = _loop(rows, columns, differentiate_tile, start)
  return to_q, to_k.astype(k.dtype), to_v.astype(v.dtype)


_attend.defvjp(_attend_forward, _attend_backward)


def _bias(rows, columns) -> np.ndarray:
  """What masks the keys outside of a query's window [1, queries, keys]."""
  mask = rows.mask()[:, None, :, None] & columns.mask()[None, :, None, :]
  mask = mask.reshape(1, rows.queries * columns.queries, -1)
  return np.where(mask, np.float32(0), _MASKED)


def _loop(rows, columns, body, start):
  """Calls body(place of the queries, place of the keys, carry) for each tile.

  A place is (first row, first column), (rows, columns).
  """

  def step(tile, carry):
    i, j = tile // columns.count, tile % columns.count
    queries = (
      (i * rows.queries, j * columns.queries),
      (rows.queries, columns.queries),
    )
    keys = (i * rows.step, j * columns.step), (rows.keys, columns.keys)
    return body(queries, keys, carry)

  return lax.fori_loop(0, rows.count * columns.count, step, start)


def _get(x, place):
  """The pixels of a place of [b, h, w, n, d] as [b * n, pixels, d]."""
  (row, column), size = place
  b, _, _, n, d = x.shape
  x = lax.dynamic_slice(x, (0, row, column, 0, 0), (b, *size, n, d))
  return x.reshape(b, -1, n, d).swapaxes(1, 2).reshape(b * n, -1, d)


def _put(x, tile, place):
  """Writes pixels of `_get` back into their place."""
  (row, column), size = place
  b, _, _, n, d = x.shape
  tile = tile.reshape(b, n, -1, d).swapaxes(1, 2).reshape(b, *size, n, d)
  return lax.dynamic_update_slice(
    x, tile.astype(x.dtype), (0, row, column, 0, 0)
  )
