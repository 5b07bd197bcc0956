"""Local attention as two Pallas kernels for TPU.

A program takes rows of one image, which are copied into frames (see
`kernels.frame`): bands of queries and the rectangles of keys that they reach.
A band is multiplied densely on the matrix unit; a key outside
a query's window has a log count of -2e30. The logits never leave the chip, and
since a band has all keys of its queries, the backward kernel recomputes the
softmax from q, k and v: nothing else is kept.

Heads stay side by side in the lanes, [b, h, w, n * d]: a last axis of d < 128
would be padded to 128 in memory. Zeros in the other heads' lanes of q cut a
product to one head.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Float32

from acmix_jax.ops import derivatives, kernels, sharding
from acmix_jax.ops.local_attention import geometry, tiles, tpu_band, tpu_plan

_dot = kernels.dot


def _softmax(logits, log_counts):
  """Weights [heads * m, keys]; the log counts [m, keys] serve all heads."""
  logits = logits.reshape(-1, *log_counts.shape) + log_counts[None]
  weights = jnp.exp(logits - logits.max(-1, keepdims=True))
  weights *= 1 / weights.sum(-1, keepdims=True)
  return weights.reshape(-1, weights.shape[-1])


class Constants(NamedTuple):
  """What is the same for all images: references.

  Attributes:
    slopes: Change of the position by row and by column [2, channels].
    offsets: Row and column of each key of a band, from the middle of its
      rectangle of keys [2, n].
    rows: Log counts by row.
    columns: Log counts by column.
  """

  slopes: Any
  offsets: Any
  rows: Any
  columns: Any

  @classmethod
  def make(cls, plan: tpu_plan.Plan, slopes: jax.Array) -> 'Constants':
    """The arrays, of slopes [2, d]."""
    slopes = jnp.tile(slopes, plan.problem.heads)
    return cls(slopes, jnp.asarray(plan.offsets()), *plan.count_tables())


class Maps(NamedTuple):
  """Frames of the queries of a block and of the keys that they reach."""

  q: Any
  k: Any
  v: Any

  def fill(self, plan: tpu_plan.Plan, refs: Sequence[Any], block):
    """Copies queries, keys and values into the frames."""
    q_ref, k_ref, v_ref = refs
    tpu_band.fill_queries(plan, self.q, q_ref, block)
    tpu_band.fill_keys(plan, self.k, k_ref)
    tpu_band.fill_keys(plan, self.v, v_ref)


class _BandWeights(NamedTuple):
  """What both kernels compute of a band with the lanes of a group.

  Attributes:
    q: Queries [heads * m, lanes], zero in the lanes of other heads.
    k: Keys [n, lanes].
    v: Values [n, lanes].
    slopes: Change of the position by row and by column [1, lanes], scaled.
      Positions count from the middle of the band's keys, in float32: 16 bits
      are too few for those that grow with the map.
    weights: Softmax of the logits [heads * m, n].
  """

  q: jax.Array
  k: jax.Array
  v: jax.Array
  slopes: list[jax.Array]
  weights: jax.Array


def _weigh(plan: tpu_plan.Plan, maps: Maps, constants, band, block, lanes):
  """`_BandWeights` of a band."""
  scale = plan.problem.depth**-0.5
  q = kernels.read_frame(maps.q, *band.queries(plan.query_strides), lanes)
  q = kernels.spread_heads(q, plan.problem.depth)
  keys = band.keys(plan.first_fetched(block))
  k, v = (kernels.read_frame(x, *keys, lanes) for x in (maps.k, maps.v))
  x, k, v = (
    x.astype(dtype)
    for x, dtype in zip((q, k, v), plan.problem.dtypes, strict=True)
  )
  logits = _dot(x, k, 1, 1) * scale
  slopes = [constants.slopes[i : i + 1, lanes] * scale for i in (0, 1)]
  for axis, slope in enumerate(slopes):
    along = (q * slope).sum(-1, keepdims=True)
    logits -= along * constants.offsets[axis : axis + 1]
  log_counts = band.log_counts(constants.rows, constants.columns)
  return _BandWeights(x, k, v, slopes, _softmax(logits, log_counts))


def clear(refs: Sequence[Any]):
  """Makes all numbers zeros; those around a map stay so."""
  for ref in refs:
    ref[...] = jnp.zeros_like(ref)


def attend_block(plan: tpu_plan.Plan, maps: Maps, constants, block, write):
  """Calls write(band, lanes, sums of values [m, lanes])."""

  def attend_band(band):
    for lanes in plan.groups:
      read = _weigh(plan, maps, constants, band, block, lanes)
      out = _dot(read.weights.astype(read.v.dtype), read.v, 1, 0)
      write(band, lanes, kernels.collect_heads(out, plan.problem.depth))

  tpu_band.for_each_band(plan, block, attend_band)


class Gradients(NamedTuple):
  """Frames of the gradients of a block; those of keys and values are sums."""

  q: Any
  k: Any
  v: Any


def differentiate_block(
  plan: tpu_plan.Plan,
  maps: Maps,
  constants: Constants,
  block,
  dout_frame,
  gradients: Gradients,
  dslopes_ref,
):
  """Writes the gradients of queries, and adds to all others.

  Args:
    plan: Sizes.
    maps: Frames of queries, keys and values.
    constants: What is the same for all images.
    block: Number of the block of rows.
    dout_frame: Frame of the gradients of the outputs.
    gradients: Frames to write to.
    dslopes_ref: Gradient of the slopes of all channels, to add to.
  """
  scale = plan.problem.depth**-0.5

  def add(frame, band, lanes, x):
    place = band.keys(plan.first_summed(block))
    x += kernels.read_frame(frame, *place, lanes)
    kernels.write_frame(frame, *place, lanes, x)

  def differentiate_band(band):
    for lanes in plan.groups:
      read = _weigh(plan, maps, constants, band, block, lanes)
      dout = kernels.read_frame(dout_frame, *band.queries(), lanes)
      dout = kernels.spread_heads(dout, plan.problem.depth)
      dout = dout.astype(read.v.dtype)
      dweights = _dot(dout, read.v, 1, 1)
      mean = (read.weights * dweights).sum(-1, keepdims=True)
      dlogits = read.weights * (dweights - mean)
      rounded = dlogits.astype(read.q.dtype)
      dq = _dot(rounded, read.k, 1, 0) * scale
      q = read.q.astype(jnp.float32)
      for axis, slope in enumerate(read.slopes):
        offset = constants.offsets[axis : axis + 1]
        along = (dlogits * offset).sum(-1, keepdims=True)
        dq -= along * slope
        dslope = (along * q).sum(0, keepdims=True) * scale
        dslopes_ref[0, axis : axis + 1, lanes] -= dslope
      place = band.queries(plan.query_strides)
      dq = kernels.collect_heads(dq, plan.problem.depth)
      kernels.write_frame(gradients.q, *place, lanes, dq)
      add(gradients.k, band, lanes, _dot(rounded, read.q, 0, 0) * scale)
      weights = read.weights.astype(dout.dtype)
      add(gradients.v, band, lanes, _dot(weights, dout, 0, 0))

  tpu_band.for_each_band(plan, block, differentiate_band)


def _store(ref, frame, column: int):
  """Copies the first rows of a frame."""
  _, rows, columns, channels = ref.shape

  @functools.partial(kernels.repeat, rows)
  def _(i):
    x = tpu_band.read_row(frame, i, column, columns, channels)
    ref[0, i] = x.astype(ref.dtype)


def _forward_kernel(*refs, plan):
  inputs, constants, (out_ref, *frames, out) = refs[:3], refs[3:7], refs[7:]
  block, maps = pl.program_id(1), Maps(*frames)
  pl.when(block == 0)(lambda: clear(maps))
  maps.fill(plan, inputs, block)

  def write(band, lanes, x):
    kernels.write_frame(out, *band.queries(), lanes, x)

  attend_block(plan, maps, Constants(*constants), block, write)
  _store(out_ref, out, 0)


def _backward_kernel(*refs, plan):
  inputs, constants, (dout_ref, *refs) = refs[:3], refs[3:7], refs[7:]
  (dq_ref, *results, dslopes_ref), refs = refs[:4], refs[4:]
  block, maps, dout = pl.program_id(1), Maps(*refs[:3]), refs[3]
  gradients = Gradients(*refs[4:])

  @pl.when(block == 0)
  def _():
    clear([*maps, dout, *gradients[1:], dslopes_ref])

  maps.fill(plan, inputs, block)
  tpu_band.fill_output_gradients(plan, dout, dout_ref, block)
  constants = Constants(*constants)
  differentiate_block(
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
    constants = Constants.make(plan, slopes)
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
      scratch_shapes=[*frames(plan), output_frame(plan)],
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
    constants = Constants.make(plan, slopes)
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
        *frames(plan),
        output_frame(plan),
        *gradient_frames(plan),
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


def frames(plan: tpu_plan.Plan) -> list:
  """Memory for frames of queries, keys and values."""
  keys = plan.key_frame(plan.fetched)
  return [
    pltpu.VMEM(shape, jnp.float32) for shape in (plan.query_frame, keys, keys)
  ]


def output_frame(plan: tpu_plan.Plan) -> Any:
  """Memory for a frame of outputs."""
  return pltpu.VMEM(plan.output_frame, jnp.float32)


def gradient_frames(plan: tpu_plan.Plan) -> list:
  """Memory for `Gradients`."""
  keys = plan.key_frame(plan.summed)
  return [
    pltpu.VMEM(shape, jnp.float32) for shape in (plan.query_frame, keys, keys)
  ]


def _parameters(plan: tpu_plan.Plan):
  return pltpu.CompilerParams(
    dimension_semantics=('parallel', 'arbitrary'),
    vmem_limit_bytes=kernels.vmem_limit(plan),
  )
