"""Both paths of ACmix as two Pallas kernels for TPU.

A program takes one image: its queries, keys and values are read once for both
paths, and so are the gradients of its outputs. What it does with them are the
kernels of `local_attention` and `shift_convolution`, one after the other.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Float32

from acmix_jax.ops import derivatives, kernels, sharding
from acmix_jax.ops.local_acmix import geometry
from acmix_jax.ops.local_attention import geometry as attention_geometry
from acmix_jax.ops.local_attention import pallas_tpu as attention_kernel
from acmix_jax.ops.local_attention import tiles
from acmix_jax.ops.local_attention import tpu_plan as attention_plan
from acmix_jax.ops.shift_convolution import pallas_tpu as convolution_kernel
from acmix_jax.ops.shift_convolution import shifts
from acmix_jax.ops.shift_convolution import tpu_plan as convolution_plan

# The only block of an image.
_BLOCK = np.int32(0)


class _Plan(NamedTuple):
  """How both paths are cut; all is static.

  Attributes:
    attention: That of the attention.
    convolution: That of the convolution.
  """

  attention: attention_plan.Plan
  convolution: convolution_plan.Plan

  @property
  def shape(self) -> tuple[int, int, int]:
    """Rows, columns and channels of a map: what either path may touch."""
    attention, convolution = self
    rows = max(attention.rows[0], convolution.rows * convolution.turns)
    columns = max(attention.columns, attention.bands[1] * attention.band[1])
    return rows, columns, attention.channels

  @property
  def frames(self) -> list[tuple[int, ...]]:
    """Shapes of the frames of maps, and of gradients of maps and outputs."""
    maps = self.convolution.inputs((0, 0)).shape
    return [maps, maps, self.convolution.gradients().shape]

  @property
  def vmem_bytes(self) -> int:
    """What the backward kernel holds at once, up to a few percent."""
    itemsize = self.attention.problem.dtypes[1].itemsize

    def size(shape, itemsize):
      return kernels.map_bytes(shape[:2], shape[2], itemsize)

    maps = 2 * 7 * size(self.shape, itemsize) + 3 * size(self.shape, 4)
    return (
      maps
      + sum(4 * math.prod(shape) for shape in self.frames)
      + self.convolution.weight_bytes
      + self.attention.logit_bytes
    )

  def cost(self, images: int, *, maps: int, products: tuple[int, int]):
    """Flops and bytes of so many reads, writes, and products of each path."""
    attention = self.attention.cost(
      images, queries=maps, keys=0, sums=0, products=products[0]
    )
    convolution = self.convolution.cost(images, products[1], 0, 0)
    return pl.CostEstimate(
      flops=attention.flops + convolution.flops,
      transcendentals=attention.transcendentals,
      bytes_accessed=attention.bytes_accessed,
    )


def _make_plan(problem: geometry.Problem) -> _Plan:
  """The plan of both paths, with whole images."""
  attention = attention_plan.make_plan(problem.attention)
  attention = attention._replace(turns=attention.bands[0])
  heads = problem.attention.heads
  maps, size = (heads,) * 3, problem.attention.keys
  convolution = convolution_plan.make_plan(
    problem.convolution, maps, size, problem.taps, heads
  )
  whole = -(-size[0] // convolution.rows)
  return _Plan(attention, convolution._replace(turns=whole))


def why_not(problem: geometry.Problem) -> str | None:
  """Reason why the kernels cannot serve, or None."""
  reason = attention_kernel.why_not(problem.attention)
  reason = reason or convolution_kernel.why_not(problem.convolution)
  if reason:
    return reason
  needed = _make_plan(problem).vmem_bytes
  if needed > attention_plan.VMEM:
    return (
      f'the kernel for TPU would need {needed / kernels.MIB:.0f} MiB on chip '
      f'for maps of {problem.attention.keys}.'
    )
  return None


def combine(
  problem: geometry.Problem,
  q: Float[Array, 'b h w n d'],
  k: Float[Array, 'b h w n d'],
  v: Float[Array, 'b h w n d'],
  slopes: Float32[Array, '2 d'],
  kernel: Float[Array, 'kh kw m f'],
  alpha: Float32[Array, ''],
  interpret: Any = False,
) -> Float[Array, 'b h w f']:
  """The sum alpha * local attention + grouped convolution; see `local_acmix`.

  Its first gradient is a kernel, other derivatives are those of plain forms.
  """
  return _combine((problem, interpret), q, k, v, slopes, kernel, alpha)


# Slow: the kernels as plain operations, for tests.
interpret = functools.partial(combine, interpret=True)


def _forward_kernel(*refs, plan: _Plan):
  *inputs, taps_ref, alpha_ref, out_ref, frame, weights = refs
  attention, convolution = plan
  inputs = attention_kernel.Inputs(*inputs)

  @pl.when(pl.program_id(1) == 0)
  def _():
    convolution_kernel.spread(weights, taps_ref, convolution)

  side = convolution.inputs(convolution.reach)
  convolution_kernel.fill(frame, inputs[:3], side, _BLOCK)
  convolution_kernel.convolve_block(convolution, frame, weights, out_ref)

  def add(index, attended):
    out = out_ref[index] + alpha_ref[0] * attended
    out_ref[index] = out.astype(out_ref.dtype)

  attention_kernel.attend_block(attention, inputs, _BLOCK, add)


def _backward_kernel(*refs, plan: _Plan):
  (*inputs, taps_ref, alpha_ref, dout_ref), refs = refs[:9], refs[9:]
  dmaps, results, sums = refs[:3], refs[3:6], refs[6:9]
  dtaps_ref, dalpha_ref, dslopes_ref = results
  x, dx, dout, weights = refs[9:]
  attention, convolution = plan
  inputs = attention_kernel.Inputs(*inputs)
  side = convolution.inputs((0, 0))

  @pl.when(pl.program_id(1) == 0)
  def _():
    convolution_kernel.spread(weights, taps_ref, convolution)
    for ref in results:
      ref[...] = jnp.zeros_like(ref)

  convolution_kernel.fill(x, inputs[:3], side, _BLOCK)
  convolution_kernel.fill(dout, [dout_ref], convolution.gradients(), _BLOCK)
  convolution_kernel.differentiate_block(
    convolution, x, dx, dout, weights, dtaps_ref
  )

  for total in sums:
    total[...] = jnp.zeros_like(total)

  def put(index, dq):
    sums[0][index[1:]] = dq

  attention_kernel.differentiate_block(
    attention, inputs, _BLOCK, dout_ref, *sums[1:], put
  )

  # All gradients are alpha times those of the attention alone.
  @functools.partial(kernels.repeat, side.size[0])
  def _(i):
    width = side.size[1]
    for number, source, sheet, target in side.pieces:
      total = dx[sheet, i, :width, target]
      total += alpha_ref[0] * sums[number][i, :width, source]
      dmaps[number][0, i, :width, source] = total.astype(dmaps[number].dtype)
    # The sum of dout * attended, as the attention is linear in the values.
    v = inputs.v[0, i, :width].astype(jnp.float32)
    dalpha_ref[0] += (v * sums[2][i, :width]).sum(0, keepdims=True)
    dk = alpha_ref[0] * sums[1][i, :width]
    column = lax.broadcasted_iota(jnp.int32, dk.shape, 0).astype(jnp.float32)
    row = i.astype(jnp.float32) - attention_geometry.middle(side.size[0])
    column -= attention_geometry.middle(width)
    dslopes_ref[0, 0:1] -= (row * dk).sum(0, keepdims=True)
    dslopes_ref[0, 1:2] -= (column * dk).sum(0, keepdims=True)


def _forward(static, q, k, v, *shared):
  plan = _make_plan(static[0])
  side = plan.convolution.inputs(plan.convolution.reach)

  def call(q, k, v, *shared):
    maps = [attention_kernel.merge_heads(x) for x in (q, k, v)]
    [out] = _call(
      _forward_kernel,
      static,
      maps,
      shared,
      outputs=1,
      sums=[],
      scratch_shapes=convolution_kernel.scratch(plan.convolution, [side]),
      cost_estimate=plan.cost(len(q), maps=4, products=(3, 1)),
      name='local_acmix',
    )
    return out

  return sharding.split_images(call, q, k, v, shared=shared), ()


def _backward(static, inputs, _, dout):
  plan = _make_plan(static[0])
  q, k, v, slopes, kernel, alpha = inputs

  def call(q, k, v, dout, *shared):
    maps = [attention_kernel.merge_heads(x) for x in (q, k, v)]
    taps = convolution_kernel.merge_taps(kernel).shape
    channels = plan.attention.channels
    dq, dk, dv, *sums = _call(
      _backward_kernel,
      static,
      [*maps, dout],
      shared,
      outputs=3,
      sums=[taps, (1, channels), (2, channels)],
      scratch_shapes=[
        *[pltpu.VMEM(plan.shape, jnp.float32)] * 3,
        *[pltpu.VMEM(x, jnp.float32) for x in plan.frames],
        pltpu.VMEM(plan.convolution.weights, kernel.dtype),
      ],
      cost_estimate=plan.cost(len(q), maps=7, products=(7, 2)),
      name='local_acmix_gradients',
    )
    dmaps = [x.reshape(q.shape) for x in (dq, dk, dv)]
    return *dmaps, *sums

  dq, dk, dv, dtaps, dalpha, dslopes = sharding.split_images(
    call, q, k, v, dout, shared=[slopes, kernel, alpha]
  )
  dkernel = dtaps.sum(0).reshape(kernel.shape).astype(kernel.dtype)
  # Heads share the position.
  dslopes = dslopes.sum(0).reshape(2, -1, slopes.shape[1]).sum(1)
  return dq, dk, dv, dslopes, dkernel, dalpha.sum()


def _general(static, q, k, v, slopes, kernel, alpha):
  attention, convolution, _ = static[0]
  relative = attention_geometry.relative_keys(k, slopes)
  attended = tiles.general(attention, q, relative, v)
  convolved = shifts.convolve(convolution, [q, k, v], kernel)
  attended = attended.reshape(convolved.shape)
  return alpha.astype(v.dtype) * attended + convolved


_combine = derivatives.define(_forward, _backward, _general)


def _call(kernel, static, maps, shared, *, outputs, sums, **options):
  """Runs a kernel on whole images.

  Args:
    kernel: The kernel.
    static: Problem and `interpret`.
    maps: Queries, keys, values, and gradients of outputs.
    shared: Slopes, kernel of the convolution, and alpha.
    outputs: Number of maps that it gives.
    sums: Shapes of the sums over images that it gives, one for each core.
    **options: Others of `pallas_call`.
  """
  plan = _make_plan(static[0])
  slopes, taps, alpha = shared
  constants = attention_kernel.make_constants(plan.attention, slopes)
  constants.append(convolution_kernel.merge_taps(taps))
  parts = kernels.parts_of(len(maps[0]))
  each = len(maps[0]) // parts
  block = pl.BlockSpec(
    (1, *plan.shape), lambda part, i: (part * each + i, 0, 0, 0)
  )
  output = jax.ShapeDtypeStruct(maps[2].shape, maps[2].dtype)
  return kernels.call(
    functools.partial(kernel, plan=plan),
    'tpu',
    [*maps[:3], *constants, alpha[None], *maps[3:]],
    [output] * outputs
    + [jax.ShapeDtypeStruct((parts, *x), jnp.float32) for x in sums],
    static[1],
    grid=(parts, each),
    in_specs=[
      *[block] * 3,
      *map(attention_kernel.whole_spec, constants),
      pl.BlockSpec(memory_space=pltpu.SMEM),
      *[block] * len(maps[3:]),
    ],
    out_specs=[block] * outputs + [_part_spec(x) for x in sums],
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=('parallel', 'arbitrary'),
      vmem_limit_bytes=max(16 * kernels.MIB, plan.vmem_bytes * 5 // 4),
    ),
    **options,
  )


def _part_spec(shape):
  """The sums of a core."""
  return pl.BlockSpec((1, *shape), lambda part, _: (part, *(0,) * len(shape)))
