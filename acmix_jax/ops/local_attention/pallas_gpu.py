"""Local attention as three Pallas kernels for GPU (Triton).

A program takes a square of queries of one head and walks over the rows of keys
that the square reaches; the softmax is updated at each step. Backwards, dq is
computed in the same way after a first walk for the statistics of the softmax;
dk and dv by a walk from each square of keys over the queries that reach it, so
no two programs write the same number.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from acmix_jax.ops import windows
from acmix_jax.ops.local_attention import window_counts

# Side of the square of a program, and pixels of a step of its walk.
_SIDE = 8
_STEP = 64
# Of a pixel of a head. Shared memory of a program is up to 400 times that.
_DEPTH_BYTES = 512
# Finite, so that differences are defined before the first key is seen.
_LOWEST = -1e30


class _Plan(NamedTuple):
  """Sizes of a problem; all are static.

  Attributes:
    queries: rows and columns of the map of queries.
    keys: rows and columns of the map of keys.
    kernel_size: side of a window.
    strides: pixels between queries.
    dilation: pixels between keys.
  """

  queries: tuple[int, int]
  keys: tuple[int, int]
  kernel_size: int
  strides: int
  dilation: int

  @property
  def reach(self) -> int:
    return windows.padding(self.kernel_size, self.dilation)


class _Pixels(NamedTuple):
  """A rectangle of pixels, which may lie partly beyond its map.

  Attributes:
    image: number of the image.
    head: number of the head.
    first: first row and column.
    shape: rows and columns of the rectangle.
    size: rows and columns of the map.
  """

  image: jax.Array
  head: jax.Array
  first: tuple[jax.Array, jax.Array]
  shape: tuple[int, int]
  size: tuple[int, int]

  @property
  def lines(self) -> list[jax.Array]:
    """Numbers of the rows and of the columns."""
    return [
      first + jnp.arange(count)
      for first, count in zip(self.first, self.shape, strict=True)
    ]

  @property
  def index(self) -> jax.Array:
    """Number of each pixel in its map."""
    rows, columns = self.lines
    return (rows[:, None] * self.size[1] + columns[None]).reshape(-1)

  @property
  def exist(self) -> jax.Array:
    """Whether each pixel is in its map."""
    rows, columns = map(_within, self.lines, self.size)
    return (rows[:, None] & columns[None]).reshape(-1)


def _within(line, size: int):
  return (line >= 0) & (line < size)


def _square(size: tuple[int, int], heads: int) -> _Pixels:
  """The pixels of this program."""
  return _Pixels(
    lax.div(pl.program_id(2), heads),
    lax.rem(pl.program_id(2), heads),
    (pl.program_id(0) * _SIDE, pl.program_id(1) * _SIDE),
    (_SIDE, _SIDE),
    size,
  )


def _walk(square, first, span: int, size, body, start):
  """Folds `body(pixels, state)` over a square of side `span`, row by row."""
  width = pl.next_power_of_2(span)
  height = max(1, _STEP // width)

  def step(i, state):
    pixels = square._replace(
      first=(first[0] + i * height, first[1]), shape=(height, width), size=size
    )
    return body(pixels, state)

  return lax.fori_loop(0, pl.cdiv(span, height), step, start)


def _walk_keys(plan: _Plan, queries: _Pixels, body, start):
  first = [pixel * plan.strides - plan.reach for pixel in queries.first]
  span = (_SIDE - 1) * plan.strides + 2 * plan.reach + 1
  return _walk(queries, first, span, plan.keys, body, start)


def _walk_queries(plan: _Plan, keys: _Pixels, body, start):
  # The first query that reaches the first key: rounded up, and none before 0.
  reached = [pixel - plan.reach + plan.strides - 1 for pixel in keys.first]
  first = [lax.div(jnp.maximum(pixel, 0), plan.strides) for pixel in reached]
  span = (_SIDE - 1 + 2 * plan.reach) // plan.strides + 1
  return _walk(keys, first, span, plan.queries, body, start)


def _channels(ref, pixels: _Pixels):
  """Where the numbers of a head are [pixels, depth], and which exist."""
  depth = ref.shape[-1]
  channel = jnp.arange(max(16, pl.next_power_of_2(depth)))[None]
  exist = pixels.exist[:, None] & (channel < depth)
  return ref.at[
    pixels.image, pixels.index[:, None], pixels.head, channel
  ], exist


def _load(ref, pixels: _Pixels):
  at, exist = _channels(ref, pixels)
  return triton.load(at, mask=exist, other=0)


def _store(ref, pixels: _Pixels, x):
  at, exist = _channels(ref, pixels)
  triton.store(at, x.astype(ref.dtype), mask=exist)


def _statistic(ref, pixels: _Pixels):
  return ref.at[pixels.image, pixels.index, pixels.head]


def _dot(x, y, axis_x: int, axis_y: int) -> jax.Array:
  axes = ((axis_x,), (axis_y,)), ((), ())
  return lax.dot_general(x, y, axes, preferred_element_type=jnp.float32)


def _logits(plan: _Plan, q, k, queries: _Pixels, keys: _Pixels):
  """Products plus log counts; -inf where a key is not in the window."""
  rows, columns = (
    window_counts.log_counts(
      plan.strides * query[:, None],
      key[None],
      size,
      plan.kernel_size,
      plan.dilation,
    )
    for query, key, size in zip(
      queries.lines, keys.lines, plan.keys, strict=True
    )
  )
  log_counts = rows[:, None, :, None] + columns[None, :, None, :]
  return _dot(q, k, 1, 1) + log_counts.reshape(q.shape[0], k.shape[0])


def _forward_kernel(q_ref, k_ref, v_ref, out_ref, *, plan):
  queries = _square(plan.queries, q_ref.shape[2])
  q = _load(q_ref, queries)

  def step(keys, state):
    highest, total, out = state
    k = _load(k_ref, keys)
    v = _load(v_ref, keys)
    logits = _logits(plan, q, k, queries, keys)
    highest, decay, weights = _weights(highest, logits)
    out = out * decay[:, None] + _dot(weights.astype(v.dtype), v, 1, 0)
    return highest, total * decay + weights.sum(1), out

  zeros = jnp.zeros(q.shape[0])
  start = zeros + _LOWEST, zeros, jnp.zeros(q.shape)
  _, total, out = _walk_keys(plan, queries, step, start)
  _store(out_ref, queries, out / total[:, None])


def _weights(highest, logits):
  """New maxima, the factor for sums so far, and weights before division."""
  new = jnp.maximum(highest, logits.max(1))
  return new, jnp.exp(highest - new), jnp.exp(logits - new[:, None])


def _dq_kernel(
  q_ref, k_ref, v_ref, dout_ref, dq_ref, norm_ref, mean_ref, *, plan
):
  """Also writes the log of the softmax's sum and the mean of dweights."""
  queries = _square(plan.queries, q_ref.shape[2])
  q = _load(q_ref, queries)
  dout = _load(dout_ref, queries)

  def products(keys):
    k = _load(k_ref, keys)
    v = _load(v_ref, keys)
    logits = _logits(plan, q, k, queries, keys)
    return k, logits, _dot(dout, v, 1, 1)

  def measure(keys, state):
    highest, total, mean = state
    _, logits, dweights = products(keys)
    highest, decay, weights = _weights(highest, logits)
    mean = mean * decay + (weights * dweights).sum(1)
    return highest, total * decay + weights.sum(1), mean

  zeros = jnp.zeros(q.shape[0])
  highest, total, mean = _walk_keys(
    plan, queries, measure, (zeros + _LOWEST, zeros, zeros)
  )
  norm, mean = highest + jnp.log(total), mean / total
  triton.store(_statistic(norm_ref, queries), norm, mask=queries.exist)
  triton.store(_statistic(mean_ref, queries), mean, mask=queries.exist)

  def step(keys, dq):
    k, logits, dweights = products(keys)
    weights = jnp.exp(logits - norm[:, None])
    dlogits = weights * (dweights - mean[:, None])
    return dq + _dot(dlogits.astype(k.dtype), k, 1, 0)

  dq = _walk_keys(plan, queries, step, jnp.zeros(q.shape))
  _store(dq_ref, queries, dq)


def _dkv_kernel(
  q_ref,
  k_ref,
  v_ref,
  dout_ref,
  norm_ref,
  mean_ref,
  dk_ref,
  dv_ref,
  *,
  plan,
):
  keys = _square(plan.keys, k_ref.shape[2])
  k = _load(k_ref, keys)
  v = _load(v_ref, keys)

  def step(queries, state):
    dk, dv = state
    q = _load(q_ref, queries)
    dout = _load(dout_ref, queries)
    norm, mean = (
      triton.load(_statistic(ref, queries), mask=queries.exist, other=0.0)
      for ref in (norm_ref, mean_ref)
    )
    logits = _logits(plan, q, k, queries, keys)
    weights = jnp.exp(logits - norm[:, None])
    dlogits = weights * (_dot(dout, v, 1, 1) - mean[:, None])
    dk += _dot(dlogits.astype(q.dtype), q, 0, 0)
    dv += _dot(weights.astype(dout.dtype), dout, 0, 0)
    return dk, dv

  zeros = jnp.zeros(k.shape)
  dk, dv = _walk_queries(plan, keys, step, (zeros, zeros))
  _store(dk_ref, keys, dk)
  _store(dv_ref, keys, dv)


def supports(q, k, kernel_size: int, strides: int, dilation: int) -> bool:
  """Whether the squares of a program fit in its shared memory."""
  span = (_SIDE - 1) * strides + (kernel_size - 1) * dilation + 1
  depth = pl.next_power_of_2(q.shape[-1])
  return (
    k.dtype in (jnp.bfloat16, jnp.float32)
    and depth * k.dtype.itemsize <= _DEPTH_BYTES
    and span <= _STEP
  )


def _merge(x):
  """[b, h, w, n, d] -> [b, h * w, n, d]."""
  return x.reshape(x.shape[0], -1, *x.shape[3:])


def _call(kernel, plan, size, inputs, outputs, interpret):
  """Runs `kernel` for all squares of a map of `size`, all heads and images."""
  batch, _, heads, _ = inputs[0].shape
  return pl.pallas_call(
    functools.partial(kernel, plan=plan),
    grid=(*(pl.cdiv(side, _SIDE) for side in size), batch * heads),
    out_shape=[jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in outputs],
    compiler_params=triton.CompilerParams(num_warps=4, num_stages=2),
    interpret=interpret,
    name='local_attention' + kernel.__name__,
  )(*inputs)


def _plan(q, k, kernel_size: int, strides: int, dilation: int) -> _Plan:
  return _Plan(q.shape[1:3], k.shape[1:3], kernel_size, strides, dilation)


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
  inputs = [_merge(x) for x in (q, k, v)]
  outputs = [(inputs[0].shape, v.dtype)]
  [out] = _call(_forward_kernel, plan, plan.queries, inputs, outputs, interpret)
  return out.reshape(q.shape)


def backward(q, k, v, dout, kernel_size, strides, dilation, interpret=False):
  """Gradients of q, k and v, given that of the output of `forward`."""
  plan = _plan(q, k, kernel_size, strides, dilation)
  inputs = [_merge(x) for x in (q, k, v, dout)]
  queries, keys = inputs[0].shape, inputs[1].shape
  statistic = (queries[:3], jnp.float32)
  outputs = [(queries, q.dtype), statistic, statistic]
  dq, *statistics = _call(
    _dq_kernel, plan, plan.queries, inputs, outputs, interpret
  )
  inputs += statistics
  outputs = [(keys, k.dtype), (keys, v.dtype)]
  dk, dv = _call(_dkv_kernel, plan, plan.keys, inputs, outputs, interpret)
  return dq.reshape(q.shape), dk.reshape(k.shape), dv.reshape(v.shape)
