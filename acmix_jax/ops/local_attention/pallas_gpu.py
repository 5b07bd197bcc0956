"""Local attention as three Pallas kernels for GPU (Triton).

A program takes a square of queries of one head and walks over the rows of keys
that the square reaches; the softmax is updated at each step. Backwards, dq is
computed in the same way after a first walk for the statistics of the softmax;
dk and dv by a walk from each square of keys over the queries that reach it, so
no two programs write the same number.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float

from acmix_jax.ops import derivatives, kernels, sharding
from acmix_jax.ops.local_attention import geometry, tiles

# Side of the square of a program, and pixels of a step of its walk.
_SIDE = 8
_STEP = 64
# Bytes of a pixel of a head; a program takes up to 400 times that on chip.
_DEPTH_BYTES = 512
# Finite, so that differences are defined before the first key is seen.
_LOWEST = -1e30

_dot = kernels.dot


class _Pixels(NamedTuple):
  """A rectangle of pixels, which may lie partly beyond its map.

  Attributes:
    image: Number of the image.
    head: Number of the head.
    first: First row and column.
    shape: Rows and columns of the rectangle.
    size: Rows and columns of the map.
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
      first + jnp.arange(count, dtype=jnp.int32)
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
    lax.div(pl.program_id(2), np.int32(heads)),
    lax.rem(pl.program_id(2), np.int32(heads)),
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

  return lax.fori_loop(
    np.int32(0), np.int32(pl.cdiv(span, height)), step, start
  )


def _walk_keys(problem: geometry.Problem, queries: _Pixels, body, start):
  first = [pixel * problem.strides - problem.reach for pixel in queries.first]
  span = (_SIDE - 1) * problem.strides + problem.extent
  return _walk(queries, first, span, problem.keys, body, start)


def _walk_queries(problem: geometry.Problem, keys: _Pixels, body, start):
  # The first query that reaches the first key: rounded up, and none before 0.
  reached = [
    pixel - problem.reach + problem.strides - 1 for pixel in keys.first
  ]
  first = [
    lax.div(jnp.maximum(pixel, 0), np.int32(problem.strides))
    for pixel in reached
  ]
  span = (_SIDE - 1 + 2 * problem.reach) // problem.strides + 1
  return _walk(keys, first, span, problem.queries, body, start)


def _channels(ref, pixels: _Pixels):
  """Where the numbers of a head are [pixels, depth], and which exist."""
  depth = ref.shape[-1]
  lanes = max(16, pl.next_power_of_2(depth))
  channel = jnp.arange(lanes, dtype=jnp.int32)[None]
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


def _logits(problem: geometry.Problem, q, k, queries: _Pixels, keys: _Pixels):
  """Products plus log counts; -2e30 where a key is not in the window."""
  rows, columns = (
    geometry.log_counts(
      problem.strides * query[:, None], key[None], size, problem
    )
    for query, key, size in zip(
      queries.lines, keys.lines, problem.keys, strict=True
    )
  )
  log_counts = rows[:, None, :, None] + columns[None, :, None, :]
  return _dot(q, k, 1, 1) + log_counts.reshape(q.shape[0], k.shape[0])


def _forward_kernel(q_ref, k_ref, v_ref, out_ref, *, problem):
  queries = _square(problem.queries, q_ref.shape[2])
  q = _load(q_ref, queries)

  def step(keys, state):
    highest, total, out = state
    k = _load(k_ref, keys)
    v = _load(v_ref, keys)
    logits = _logits(problem, q, k, queries, keys)
    highest, decay, weights = _weights(highest, logits)
    out = out * decay[:, None] + _dot(weights.astype(v.dtype), v, 1, 0)
    return highest, total * decay + weights.sum(1), out

  zeros = jnp.zeros(q.shape[0], jnp.float32)
  start = zeros + _LOWEST, zeros, jnp.zeros(q.shape, jnp.float32)
  _, total, out = _walk_keys(problem, queries, step, start)
  _store(out_ref, queries, out / total[:, None])


def _weights(highest, logits):
  """New maxima, the factor for sums so far, and weights before division."""
  new = jnp.maximum(highest, logits.max(1))
  return new, jnp.exp(highest - new), jnp.exp(logits - new[:, None])


def _dq_kernel(
  q_ref, k_ref, v_ref, dout_ref, dq_ref, norm_ref, mean_ref, *, problem
):
  """Also writes the log of the softmax's sum and the mean of dweights."""
  queries = _square(problem.queries, q_ref.shape[2])
  q = _load(q_ref, queries)
  dout = _load(dout_ref, queries)

  def products(keys):
    k = _load(k_ref, keys)
    v = _load(v_ref, keys)
    logits = _logits(problem, q, k, queries, keys)
    return k, logits, _dot(dout, v, 1, 1)

  def measure(keys, state):
    highest, total, mean = state
    _, logits, dweights = products(keys)
    highest, decay, weights = _weights(highest, logits)
    mean = mean * decay + (weights * dweights).sum(1)
    return highest, total * decay + weights.sum(1), mean

  zeros = jnp.zeros(q.shape[0], jnp.float32)
  highest, total, mean = _walk_keys(
    problem, queries, measure, (zeros + _LOWEST, zeros, zeros)
  )
  norm, mean = highest + jnp.log(total), mean / total
  triton.store(_statistic(norm_ref, queries), norm, mask=queries.exist)
  triton.store(_statistic(mean_ref, queries), mean, mask=queries.exist)

  def step(keys, dq):
    k, logits, dweights = products(keys)
    weights = jnp.exp(logits - norm[:, None])
    dlogits = weights * (dweights - mean[:, None])
    return dq + _dot(dlogits.astype(k.dtype), k, 1, 0)

  dq = _walk_keys(problem, queries, step, jnp.zeros(q.shape, jnp.float32))
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
  problem,
):
  keys = _square(problem.keys, k_ref.shape[2])
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
    logits = _logits(problem, q, k, queries, keys)
    weights = jnp.exp(logits - norm[:, None])
    dlogits = weights * (_dot(dout, v, 1, 1) - mean[:, None])
    dk += _dot(dlogits.astype(q.dtype), q, 0, 0)
    dv += _dot(weights.astype(dout.dtype), dout, 0, 0)
    return dk, dv

  zeros = jnp.zeros(k.shape, jnp.float32)
  dk, dv = _walk_queries(problem, keys, step, (zeros, zeros))
  _store(dk_ref, keys, dk)
  _store(dv_ref, keys, dv)


def why_not(problem: geometry.Problem) -> str | None:
  """Reason why the kernels cannot serve: dtypes, or shared memory."""
  if problem.varying:
    return f'of the kernel for GPU, {sharding.WHY_NOT_VARYING}'
  dtype = problem.dtypes[1]
  if dtype not in (jnp.bfloat16, jnp.float32):
    return f'the kernel for GPU takes float32 and bfloat16, not {dtype}.'
  depth = pl.next_power_of_2(problem.depth)
  if depth * dtype.itemsize > _DEPTH_BYTES:
    return (
      f'the kernel for GPU takes heads of {_DEPTH_BYTES // dtype.itemsize} '
      f'channels of {dtype}, not of {problem.depth}.'
    )
  span = (_SIDE - 1) * problem.strides + problem.extent
  if span > _STEP:
    return (
      f'the kernel for GPU lets {_SIDE} neighbouring queries reach {_STEP} '
      f'pixels, not {span}.'
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

  Its first gradient is kernels, other derivatives are those of tiles. Several
  devices share the images if `jax.set_mesh` names their mesh.

  Args:
    problem: Sizes of the arrays and the window.
    q: Queries.
    k: Keys, scaled.
    v: Values.
    interpret: `interpret` of `pallas_call`: True runs plain operations, on any
      machine.

  Returns:
    Sums of values in the dtype of v.
  """
  return _attend((problem, interpret), q, k, v)


def _forward(static, q, k, v):
  problem, interpret = static

  def call(q, k, v):
    inputs = [_merge_pixels(x) for x in (q, k, v)]
    outputs = [(inputs[0].shape, v.dtype)]
    [out] = _call(
      _forward_kernel, problem, problem.queries, inputs, outputs, interpret
    )
    return out.reshape(q.shape)

  return sharding.split_images(call, q, k, v), ()


def _backward(static, inputs, _, dout):
  problem, interpret = static

  def call(q, k, v, dout):
    inputs = [_merge_pixels(x) for x in (q, k, v, dout)]
    queries, keys = inputs[0].shape, inputs[1].shape
    statistic = (queries[:3], jnp.float32)
    outputs = [(queries, q.dtype), statistic, statistic]
    dq, *statistics = _call(
      _dq_kernel, problem, problem.queries, inputs, outputs, interpret
    )
    inputs += statistics
    outputs = [(keys, k.dtype), (keys, v.dtype)]
    dk, dv = _call(
      _dkv_kernel, problem, problem.keys, inputs, outputs, interpret
    )
    return dq.reshape(q.shape), dk.reshape(k.shape), dv.reshape(v.shape)

  return sharding.split_images(call, *inputs, dout)


_attend = derivatives.define(
  _forward,
  _backward,
  lambda static, *inputs: tiles.general(static[0], *inputs),
)


def _merge_pixels(x):
  """[b, h, w, n, d] -> [b, h * w, n, d]."""
  return x.reshape(x.shape[0], -1, *x.shape[3:])


def _call(kernel, problem, size, inputs, outputs, interpret):
  """Runs `kernel` for all squares of a map of `size`, all heads and images."""
  batch, _, heads, _ = inputs[0].shape
  outputs = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in outputs]
  return kernels.call(
    functools.partial(kernel, problem=problem),
    'cuda',
    inputs,
    outputs,
    interpret,
    grid=(*(pl.cdiv(side, _SIDE) for side in size), batch * heads),
    compiler_params=triton.CompilerParams(num_warps=4, num_stages=2),
    name='local_attention' + kernel.__name__,
  )
