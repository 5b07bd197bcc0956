"""The work of a kernel for TPU on a block of rows: bands, one by one.

The maps are in frames (see `kernels.frame`). A band of queries is multiplied
densely with the rectangle of keys that it reaches; a key outside a query's
window has a log count of -2e30. A band has all keys of its queries, so its
softmax can be computed again for the gradients.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu

from acmix_jax.ops import kernels
from acmix_jax.ops.local_attention import tpu_band, tpu_plan

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
