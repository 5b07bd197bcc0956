"""Local attention as three Pallas kernels for GPU (Triton).

A program takes a square of queries of one head and walks over the rows of keys
that the square reaches; the softmax is updated at each step. Backwards, dq is
computed in the same way after a first walk for the statistics of the softmax;
dk and dv by a walk from each square of keys over the queries that reach it, so
no two programs write the same number.

Positions are no part of the keys, whose dtype may be too small for them. They
add to a logit the distance of the key, by row and by column, times a slope that
its query has.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float, Float32

from acmix_jax.ops import derivatives, kernels, sharding
from acmix_jax.ops.local_attention import geometry, gpu_pixels, tiles

# Bytes of a pixel of a head; a program takes up to 400 times that on chip.
_DEPTH_BYTES = 512
# Finite, so that differences are defined before the first key is seen.
_LOWEST = -1e30

_dot = kernels.dot


def _load_slopes(ref):
  """Slopes of the position, by row and by column, each [1, depth]."""
  lines = [gpu_pixels.line(ref, axis) for axis in (0, 1)]
  return [triton.load(at, mask=exist, other=0)[None] for at, exist in lines]


def _logit_slopes(problem: geometry.Problem, q, slopes):
  """Change of each query's logits by row and by column."""
  q = q.astype(jnp.float32) * problem.depth**-0.5
  return [(q * slope).sum(1) for slope in slopes]


def _distances(problem: geometry.Problem, queries, keys):
  """Rows and columns from keys to queries [queries, keys]."""
  return [
    (problem.strides * query[:, None] - key[None]).astype(jnp.float32)
    for query, key in zip(queries.places, keys.places, strict=True)
  ]


def _logits(problem: geometry.Problem, q, k, logit_slopes, queries, keys):
  """Logits plus log counts; -2e30 where a key is not in the window."""
  rows, columns = (
    geometry.log_counts(
      problem.strides * query[:, None], key[None], size, problem
    )
    for query, key, size in zip(
      queries.lines, keys.lines, problem.keys, strict=True
    )
  )
  log_counts = rows[:, None, :, None] + columns[None, :, None, :]
  logits = _dot(q, k, 1, 1) * problem.depth**-0.5
  distances = _distances(problem, queries, keys)
  for slope, distance in zip(logit_slopes, distances, strict=True):
    logits += slope[:, None] * distance
  return logits + log_counts.reshape(logits.shape)


def _forward_kernel(q_ref, k_ref, v_ref, slopes_ref, out_ref, *, problem):
  queries = gpu_pixels.square(problem.queries, q_ref.shape[2])
  q = gpu_pixels.load(q_ref, queries)
  logit_slopes = _logit_slopes(problem, q, _load_slopes(slopes_ref))

  def step(keys, state):
    highest, total, out = state
    k = gpu_pixels.load(k_ref, keys)
    v = gpu_pixels.load(v_ref, keys)
    logits = _logits(problem, q, k, logit_slopes, queries, keys)
    highest, decay, weights = _weights(highest, logits)
    out = out * decay[:, None] + _dot(weights.astype(v.dtype), v, 1, 0)
    return highest, total * decay + weights.sum(1), out

  zeros = jnp.zeros(q.shape[0], jnp.float32)
  start = zeros + _LOWEST, zeros, jnp.zeros(q.shape, jnp.float32)
  _, total, out = gpu_pixels.walk_keys(problem, queries, step, start)
  gpu_pixels.store(out_ref, queries, out / total[:, None])


def _weights(highest, logits):
  """New maxima, the factor for sums so far, and weights before division."""
  new = jnp.maximum(highest, logits.max(1))
  return new, jnp.exp(highest - new), jnp.exp(logits - new[:, None])


def _dq_kernel(
  q_ref,
  k_ref,
  v_ref,
  slopes_ref,
  dout_ref,
  dq_ref,
  dslopes_ref,
  norm_ref,
  mean_ref,
  *,
  problem,
):
  """Also writes the log of the softmax's sum and the mean of dweights."""
  queries = gpu_pixels.square(problem.queries, q_ref.shape[2])
  q = gpu_pixels.load(q_ref, queries)
  dout = gpu_pixels.load(dout_ref, queries)
  slopes = _load_slopes(slopes_ref)
  logit_slopes = _logit_slopes(problem, q, slopes)

  def products(keys):
    k = gpu_pixels.load(k_ref, keys)
    v = gpu_pixels.load(v_ref, keys)
    logits = _logits(problem, q, k, logit_slopes, queries, keys)
    return k, logits, _dot(dout, v, 1, 1)

  def measure(keys, state):
    highest, total, mean = state
    _, logits, dweights = products(keys)
    highest, decay, weights = _weights(highest, logits)
    mean = mean * decay + (weights * dweights).sum(1)
    return highest, total * decay + weights.sum(1), mean

  zeros = jnp.zeros(q.shape[0], jnp.float32)
  highest, total, mean = gpu_pixels.walk_keys(
    problem, queries, measure, (zeros + _LOWEST, zeros, zeros)
  )
  norm, mean = highest + jnp.log(total), mean / total
  for ref, x in ((norm_ref, norm), (mean_ref, mean)):
    triton.store(gpu_pixels.statistic(ref, queries), x, mask=queries.exist)

  def step(keys, state):
    dq, *sums = state
    k, logits, dweights = products(keys)
    weights = jnp.exp(logits - norm[:, None])
    dlogits = weights * (dweights - mean[:, None])
    dq += _dot(dlogits.astype(k.dtype), k, 1, 0)
    distances = _distances(problem, queries, keys)
    pairs = zip(sums, distances, strict=True)
    return dq, *(total + (dlogits * x).sum(1) for total, x in pairs)

  start = jnp.zeros(q.shape, jnp.float32), zeros, zeros
  dq, *sums = gpu_pixels.walk_keys(problem, queries, step, start)
  for axis, total in enumerate(sums):
    # There is no mean of the queries beyond the map.
    total = jnp.where(queries.exist, total, 0)[:, None]
    dq += total * slopes[axis]
    dslope = (total * q.astype(jnp.float32)).sum(0) * problem.depth**-0.5
    _store_slope(dslopes_ref, queries, axis, dslope)
  gpu_pixels.store(dq_ref, queries, dq * problem.depth**-0.5)


def _store_slope(ref, queries, axis: int, x):
  """Writes this program's part of the gradient of a slope."""
  place = queries.image, pl.program_id(0), pl.program_id(1), queries.head
  at, exist = gpu_pixels.line(ref, *place, axis)
  triton.store(at, x, mask=exist)


def _dkv_kernel(
  q_ref,
  k_ref,
  v_ref,
  slopes_ref,
  dout_ref,
  norm_ref,
  mean_ref,
  dk_ref,
  dv_ref,
  *,
  problem,
):
  keys = gpu_pixels.square(problem.keys, k_ref.shape[2])
  k = gpu_pixels.load(k_ref, keys)
  v = gpu_pixels.load(v_ref, keys)
  slopes = _load_slopes(slopes_ref)

  def step(queries, state):
    dk, dv = state
    q = gpu_pixels.load(q_ref, queries)
    dout = gpu_pixels.load(dout_ref, queries)
    norm, mean = (
      triton.load(
        gpu_pixels.statistic(ref, queries), mask=queries.exist, other=0.0
      )
      for ref in (norm_ref, mean_ref)
    )
    logit_slopes = _logit_slopes(problem, q, slopes)
    logits = _logits(problem, q, k, logit_slopes, queries, keys)
    weights = jnp.exp(logits - norm[:, None])
    dlogits = weights * (_dot(dout, v, 1, 1) - mean[:, None])
    dk += _dot(dlogits.astype(q.dtype), q, 0, 0)
    dv += _dot(weights.astype(dout.dtype), dout, 0, 0)
    return dk, dv

  zeros = jnp.zeros(k.shape, jnp.float32)
  dk, dv = gpu_pixels.walk_queries(problem, keys, step, (zeros, zeros))
  gpu_pixels.store(dk_ref, keys, dk * problem.depth**-0.5)
  gpu_pixels.store(dv_ref, keys, dv)


def why_not(problem: geometry.Problem) -> str | None:
  """Reason why the kernels cannot serve: dtypes, or shared memory."""
  dtype = problem.dtypes[1]
  reason = kernels.why_not('GPU', problem, dtype)
  if reason:
    return reason
  depth = pl.next_power_of_2(problem.depth)
  if depth * dtype.itemsize > _DEPTH_BYTES:
    return (
      f'the kernel for GPU takes heads of {_DEPTH_BYTES // dtype.itemsize} '
      f'channels of {dtype}, not of {problem.depth}.'
    )
  side, most = gpu_pixels.SIDE, gpu_pixels.STEP
  span = (side - 1) * problem.strides + problem.extent
  if span > most:
    return (
      f'the kernel for GPU lets {side} neighbouring queries reach {most} '
      f'pixels, not {span}.'
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

  Its first gradient is kernels, other derivatives are those of tiles. Several
  devices share the images if `jax.set_mesh` names their mesh.

  Args:
    problem: Sizes of the arrays and the window.
    q: Queries.
    k: Keys.
    v: Values.
    slopes: Change of the position from a row, and from a column, to the next.
    interpret: `interpret` of `pallas_call`: True runs plain operations, on any
      machine.

  Returns:
    Sums of values in the dtype of v.
  """
  return _attend((problem, interpret), q, k, v, slopes)


def _forward(static, q, k, v, slopes):
  problem, interpret = static

  def call(q, k, v, slopes):
    inputs = [*map(_merge_pixels, (q, k, v)), slopes]
    outputs = [(inputs[0].shape, v.dtype)]
    [out] = _call(
      _forward_kernel, problem, problem.queries, inputs, outputs, interpret
    )
    return out.reshape(q.shape)

  return sharding.split_images(call, q, k, v, shared=[slopes]), ()


def _backward(static, inputs, _, dout):
  problem, interpret = static
  *maps, slopes = inputs

  def call(q, k, v, dout, slopes):
    inputs = [*map(_merge_pixels, (q, k, v)), slopes, _merge_pixels(dout)]
    queries, keys = inputs[0].shape, inputs[1].shape
    squares = len(q), *_squares(problem.queries), problem.heads, *slopes.shape
    statistic = queries[:3], jnp.float32
    outputs = [(queries, q.dtype), (squares, jnp.float32), *[statistic] * 2]
    dq, dslopes, *statistics = _call(
      _dq_kernel, problem, problem.queries, inputs, outputs, interpret
    )
    inputs += statistics
    outputs = [(keys, k.dtype), (keys, v.dtype)]
    dk, dv = _call(
      _dkv_kernel, problem, problem.keys, inputs, outputs, interpret
    )
    dmaps = dq.reshape(q.shape), dk.reshape(k.shape), dv.reshape(v.shape)
    return *dmaps, dslopes

  *dmaps, dslopes = sharding.split_images(call, *maps, dout, shared=[slopes])
  return *dmaps, dslopes.sum((0, 1, 2, 3))


def _general(static, q, k, v, slopes):
  return tiles.general(static[0], q, geometry.relative_keys(k, slopes), v)


_attend = derivatives.define(_forward, _backward, _general)


def _squares(size):
  """Squares along the rows and the columns of a map."""
  return [pl.cdiv(side, gpu_pixels.SIDE) for side in size]


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
    grid=(*_squares(size), batch * heads),
    compiler_params=triton.CompilerParams(num_warps=4, num_stages=2),
    name='local_attention' + kernel.__name__,
  )
