"""The kernels of the convolution for GPU."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from acmix_jax.ops import shift_convolution
from acmix_jax.ops.shift_convolution import (
  geometry,
  gpu_plan,
  pallas_gpu,
  shifts,
)
from tests.ops import battery


def make_inputs(size, counts, depth, outputs, taps, dtype='float32'):
  maps = [
    battery.normal(i, (2, *size, count, depth), dtype)
    for i, count in enumerate(counts)
  ]
  shape = (*taps, sum(counts), depth * outputs)
  return maps, battery.normal(len(maps), shape, dtype)


@pytest.mark.parametrize(
  ('size', 'counts', 'depth', 'outputs', 'taps', 'strides', 'dilation'),
  [
    # Maps that lie side by side.
    ((7, 5), (2, 4), 4, 2, (3, 3), 1, 1),
    # Channels of a map that several programs share, and some that none has.
    ((4, 5), (1,), 72, 1, (3, 3), 1, 2),
    ((5, 6), (3,), 6, 3, (3, 1), 2, 1),
    # Rows of taps one after the other, outputs in two groups, pixels that no
    # tap sees.
    ((6, 7), (1, 2), 8, 6, (5, 3), 3, 1),
  ],
)
def test_kernels_equal_the_shifts(
  size, counts, depth, outputs, taps, strides, dilation, monkeypatch
):
  # Several programs and steps for maps as small as these.
  for name, value in (('_NUMBERS', 1), ('_KERNEL_NUMBERS', 1)):
    monkeypatch.setattr(gpu_plan, name, value)
  monkeypatch.setattr(gpu_plan, '_PROGRAMS', 3)
  inputs = make_inputs(size, counts, depth, outputs, taps)
  problem = geometry.describe(*inputs, strides, dilation)
  run = functools.partial(pallas_gpu.convolve, problem, interpret=True)
  want, want_pullback = jax.vjp(
    jax.jit(functools.partial(shifts.convolve, problem)), *inputs
  )
  out, pullback = jax.vjp(jax.jit(run), *inputs)
  dout = battery.normal(9, want.shape)
  results = jax.tree.leaves([out, pullback(dout)])
  for got, wanted in zip(
    results, jax.tree.leaves([want, want_pullback(dout)]), strict=True
  ):
    scale = np.abs(wanted).max()
    np.testing.assert_allclose(got / scale, wanted / scale, atol=2e-6)


@pytest.mark.parametrize(
  ('size', 'heads', 'depth', 'taps', 'options', 'dtype'),
  [
    ((56, 56), 4, 16, (3, 3), {}, 'bfloat16'),
    ((7, 7), 4, 128, (3, 3), {}, 'float32'),
    ((25, 21), 3, 24, (5, 5), {'strides': 2, 'dilation': 2}, 'bfloat16'),
  ],
)
def test_kernels_lower_for_cuda(size, heads, depth, taps, options, dtype):
  x = jax.ShapeDtypeStruct((2, *size, heads, depth), dtype)
  fc_kernel = jax.ShapeDtypeStruct((3 * heads, 9), jnp.float32)
  kernel = jax.ShapeDtypeStruct((*taps, 9, heads * depth), jnp.float32)

  def total(maps, fc_kernel, kernel):
    out = shift_convolution.shift_convolution(
      maps, fc_kernel, kernel, **options
    )
    return out.astype(jnp.float32).sum()

  gradient = jax.jit(jax.value_and_grad(total, (0, 1, 2)))
  lowered = gradient.trace([x] * 3, fc_kernel, kernel).lower(
    lowering_platforms=('cuda',)
  )
  # The outputs, then the gradients of each map and of its part of the kernel.
  assert lowered.as_text().count('gpu.triton') == 7


def test_a_program_has_whole_maps_side_by_side():
  problem = geometry.Problem(np.dtype('float32'), 4, 1, 1)
  plans = [
    gpu_plan.make_plan(problem, (3, 3), [(7, 7)] * 2, maps, outputs)
    for maps, outputs in itertools.product((1, 4, 6), (1, 6, 7))
  ]
  assert [plan.heads for plan in plans] == [1] * 3 + [4] * 3 + [2] * 3
  assert [plan.group for plan in plans] == [1, 3, 1] * 3
