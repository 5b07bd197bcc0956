"""Window attention as two Pallas kernels for TPU.

A program takes a row of windows of one image, as it lies in the map: nothing is
cut outside. Its pixels are copied into frames of 32-bit numbers, where a slice
may begin at any column. A window is read with so many columns that its rows
fill registers; the pixels beyond it are zeros that no query sees. The logits
never leave the chip, and the backward kernel recomputes the softmax.

Heads stay side by side in the lanes, as in `local_attention.pallas_tpu`.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Float32

from acmix_jax.ops import derivatives, kernels, sharding
from acmix_jax.ops.shifted_windows import geometry, plain, tpu_plan

_dot = kernels.dot


def why_not(problem: geometry.Problem) -> str | None:
  """Reason why the kernels cannot serve, or None."""
  reason = kernels.why_not('TPU', problem, problem.dtype)
  if reason:
    return reason
  if kernels.LANES % problem.depth:
    return (
      f'the kernel for TPU takes heads of a divisor of {kernels.LANES} '
      f'channels, not {problem.depth}.'
    )
  return kernels.too_large(tpu_plan.Plan(problem), problem.padded)


def attend(
  problem: geometry.Problem,
  maps: Float[Array, 'b h w m d'],
  bias: Float32[Array, 'n t t'],
  interpret: Any = False,
) -> Float[Array, 'b h w n d']:
  """Attention within windows; see `window_attention`.

  Its first gradient is a kernel, other derivatives are those of the plain form.
  """
  return _attend((problem, interpret), maps, bias)


# Slow: the kernels as plain operations, for tests.
interpret = functools.partial(attend, interpret=True)


class Constants(NamedTuple):
  """What is added to the logits: references.

  Attributes:
    bias: Of each head [n, tokens, tokens].
    masks: Different masks [p, tokens, tokens].
    index: Which mask a window has [rows, columns].
  """

  bias: Any
  masks: Any
  index: Any

  def softmax(self, logits, heads: slice, mask) -> jax.Array:
    """Weights [heads * tokens, tokens]."""
    logits = logits.reshape(-1, *mask.shape) + self.bias[heads] + mask[None]
    weights = jnp.exp(logits - logits.max(-1, keepdims=True))
    weights *= 1 / weights.sum(-1, keepdims=True)
    return weights.reshape(-1, weights.shape[-1])


class _Window(NamedTuple):
  """The lanes of a group within a window.

  Attributes:
    plan: Sizes.
    first: First column of the window.
    sheet: Number of the group.
  """

  plan: tpu_plan.Plan
  first: Any
  sheet: int

  @property
  def heads(self) -> slice:
    """Heads of the group."""
    lanes, depth = self.plan.groups[self.sheet], self.plan.problem.depth
    return slice(lanes.start // depth, lanes.stop // depth)

  def _index(self, columns: int):
    lanes = self.plan.groups[self.sheet]
    width = lanes.stop - lanes.start
    columns = pl.ds(self.first, columns)
    return self.sheet, slice(None), columns, slice(width)

  def read(self, frame) -> jax.Array:
    """The pixels [tokens, lanes] in 32 bits; zeros beyond the window."""
    x = frame[self._index(self.plan.span)]
    column = lax.broadcasted_iota(jnp.int32, x.shape, 1)
    x = jnp.where(column < self.plan.problem.window_size, x, 0)
    return x.reshape(-1, x.shape[-1])

  def write(self, frame, x: jax.Array):
    """The reverse of `read`."""
    side = self.plan.problem.window_size
    x = x.reshape(side, self.plan.span, -1)[:, :side]
    frame[self._index(side)] = x


class Row(NamedTuple):
  """A row of windows, whose pixels kernels copy into frames.

  Attributes:
    plan: Sizes.
    number: Which of the map's rows of windows it is.
  """

  plan: tpu_plan.Plan
  number: Any

  def fill(self, frame: Any, ref: Any, row: Any = 0, lane: int = 0):
    """Copies pixels into a frame.

    Args:
      frame: Frame.
      ref: Maps [1, rows, columns, channels].
      row: The first row in the maps.
      lane: The first channel there.
    """

    def copy(inside, outside):
      frame[inside] = ref[outside].astype(jnp.float32)

    self._for_each_line(row, lane, copy)

  def store(self, frame: Any, ref: Any, row: Any = 0, lane: int = 0):
    """The reverse of `fill`."""

    def copy(inside, outside):
      ref[outside] = frame[inside].astype(ref.dtype)

    self._for_each_line(row, lane, copy)

  def _for_each_line(self, row, lane, body):
    """Calls body(index in a frame, index in the maps) of the same pixels."""
    columns = slice(self.plan.problem.padded[1])

    @functools.partial(kernels.repeat, self.plan.problem.window_size)
    def _(i):
      for sheet, lanes in enumerate(self.plan.groups):
        first, width = lane + lanes.start, lanes.stop - lanes.start
        body(
          (sheet, i, columns, slice(width)),
          (0, row + i, columns, slice(first, first + width)),
        )

  def attend(self, constants: Constants, frames: Sequence[Any]):
    """Writes the outputs in the place of the queries.

    Args:
      constants: What is added to the logits.
      frames: Frames of queries, keys and values.
    """
    dtype, depth = self.plan.problem.dtype, self.plan.problem.depth

    def attend(window, mask):
      q, k, v = map(window.read, frames)
      q = kernels.spread_heads((q * depth**-0.5).astype(dtype), depth)
      logits = _dot(q, k.astype(dtype), 1, 1)
      weights = constants.softmax(logits, window.heads, mask).astype(dtype)
      out = _dot(weights, v.astype(dtype), 1, 0)
      # No other window reads these queries.
      window.write(frames[0], kernels.collect_heads(out, depth))

    self._for_each_window(constants, attend)

  def differentiate(
    self,
    constants: Constants,
    frames: Sequence[Any],
    dbias_ref: Any,
    *,
    recompute_outputs: bool = False,
  ):
    """Writes the gradients of the maps in their place.

    Args:
      constants: What is added to the logits.
      frames: Frames of queries, keys, values, and gradients of the outputs.
      dbias_ref: Gradient of the bias, to add to.
      recompute_outputs: Whether to write the outputs in the place of their
        gradients.
    """
    dtype, depth = self.plan.problem.dtype, self.plan.problem.depth

    def differentiate(window, mask):
      q, k, v, dout = map(window.read, frames)
      k, v = k.astype(dtype), v.astype(dtype)
      q = kernels.spread_heads((q * depth**-0.5).astype(dtype), depth)
      dout = kernels.spread_heads(dout.astype(dtype), depth)
      weights = constants.softmax(_dot(q, k, 1, 1), window.heads, mask)
      dweights = _dot(dout, v, 1, 1)
      mean = (weights * dweights).sum(-1, keepdims=True)
      dlogits = weights * (dweights - mean)
      dbias_ref[0, window.heads] += dlogits.reshape(-1, *mask.shape)
      dlogits, weights = dlogits.astype(dtype), weights.astype(dtype)
      dq = kernels.collect_heads(_dot(dlogits, k, 1, 0), depth) * depth**-0.5
      results = [dq, _dot(dlogits, q, 0, 0), _dot(weights, dout, 0, 0)]
      if recompute_outputs:
        results.append(kernels.collect_heads(_dot(weights, v, 1, 0), depth))
      # No other window reads these pixels.
      for frame, x in zip(frames, results, strict=False):
        window.write(frame, x)

    self._for_each_window(constants, differentiate)

  def _for_each_window(self, constants, body):
    """Calls body(window, mask) for all groups of all windows."""

    @functools.partial(kernels.repeat, self.plan.problem.windows[1])
    def _(number):
      mask = constants.masks[constants.index[self.number, number]]
      for sheet in range(len(self.plan.groups)):
        first = number * self.plan.problem.window_size
        body(_Window(self.plan, first, sheet), mask)


def _forward_kernel(*refs, plan: tpu_plan.Plan):
  maps_ref, *constants, out_ref, q_frame, k_frame, v_frame = refs
  row, frames = Row(plan, pl.program_id(2)), (q_frame, k_frame, v_frame)
  for number, frame in enumerate(frames):
    row.fill(frame, maps_ref, lane=number * plan.channels)
  row.attend(Constants(*constants), frames)
  row.store(q_frame, out_ref)


def _backward_kernel(*refs, plan: tpu_plan.Plan):
  (maps_ref, *constants), refs = refs[:4], refs[4:]
  dout_ref, dmaps_ref, dbias_ref, *frames = refs
  row = Row(plan, pl.program_id(2))

  @pl.when((pl.program_id(1) == 0) & (pl.program_id(2) == 0))
  def _():
    dbias_ref[...] = jnp.zeros_like(dbias_ref)

  lanes = [number * plan.channels for number in range(3)]
  for frame, lane in zip(frames, lanes, strict=False):
    row.fill(frame, maps_ref, lane=lane)
  row.fill(frames[3], dout_ref)
  row.differentiate(Constants(*constants), frames, dbias_ref)
  for frame, lane in zip(frames, lanes, strict=False):
    row.store(frame, dmaps_ref, lane=lane)


def _forward(static, maps, bias):
  plan = tpu_plan.Plan(static[0])

  def call(maps, bias):
    features = jax.ShapeDtypeStruct(
      (*maps.shape[:3], plan.channels), maps.dtype
    )
    [out] = _call(
      _forward_kernel,
      static,
      [_merge(maps)],
      bias,
      outputs=[features],
      sums=[],
      frames=3,
      cost_estimate=plan.cost(len(maps), maps=4, products=2),
      name='window_attention',
    )
    return out.reshape(*out.shape[:3], -1, plan.problem.depth)

  return sharding.split_images(call, maps, shared=[bias]), ()


def _backward(static, inputs, _, dout):
  plan = tpu_plan.Plan(static[0])
  maps, bias = inputs

  def call(maps, dout, bias):
    merged = _merge(maps)
    dmaps, dbias = _call(
      _backward_kernel,
      static,
      [merged, _merge(dout)],
      bias,
      outputs=[merged],
      sums=[(plan.problem.heads, plan.tokens, plan.tokens)],
      frames=4,
      cost_estimate=plan.cost(len(maps), maps=7, products=5),
      name='window_attention_gradients',
    )
    return dmaps.reshape(maps.shape), dbias

  dmaps, dbias = sharding.split_images(call, maps, dout, shared=[bias])
  return dmaps, plan.cut_bias(dbias.sum(0))


def _general(static, *inputs):
  return plain.attend(static[0], *inputs)


_attend = derivatives.define(_forward, _backward, _general)


def _call(kernel, static, maps, bias, *, outputs, sums, frames, **options):
  """Runs a kernel on rows of windows.

  Args:
    kernel: The kernel.
    static: Problem and `interpret`.
    maps: All maps as one, and gradients of the outputs.
    bias: Bias of each head.
    outputs: Maps like those that it gives.
    sums: Shapes of the sums over images that it gives, one for each core.
    frames: Number of its frames.
    **options: Others of `pallas_call`.
  """
  plan = tpu_plan.Plan(static[0])
  parts = kernels.parts_of(len(maps[0]))
  each = len(maps[0]) // parts
  masks, index = plan.masks()
  constants = plan.pad_bias(bias), jnp.asarray(masks)

  def rows(x):
    return pl.BlockSpec(
      (1, plan.problem.window_size, *x.shape[2:]),
      lambda part, i, row: (part * each + i, row, 0, 0),
    )

  return kernels.call(
    functools.partial(kernel, plan=plan),
    'tpu',
    [maps[0], *constants, jnp.asarray(index), *maps[1:]],
    [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in outputs]
    + [jax.ShapeDtypeStruct((parts, *x), jnp.float32) for x in sums],
    static[1],
    grid=(parts, each, plan.problem.windows[0]),
    in_specs=[
      rows(maps[0]),
      *(pl.BlockSpec(x.shape, lambda *_: (0, 0, 0)) for x in constants),
      pl.BlockSpec(memory_space=pltpu.SMEM),
      *map(rows, maps[1:]),
    ],
    out_specs=[
      *map(rows, outputs),
      *(pl.BlockSpec((1, *x), lambda part, *_: (part, 0, 0, 0)) for x in sums),
    ],
    scratch_shapes=[pltpu.VMEM(plan.frame, jnp.float32)] * frames,
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=('parallel', 'arbitrary', 'arbitrary'),
      vmem_limit_bytes=kernels.vmem_limit(plan),
    ),
    **options,
  )


def _merge(x):
  return x.reshape(*x.shape[:3], -1)
