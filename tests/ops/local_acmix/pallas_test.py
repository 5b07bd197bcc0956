"""The kernels of both paths, and of the convolution, for TPU."""

import functools
import types

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from acmix_jax.ops import local_acmix, reference, shift_convolution
from acmix_jax.ops.local_acmix import geometry, pallas_tpu
from acmix_jax.ops.local_attention import tpu_plan as attention_plan
from acmix_jax.ops.shift_convolution import geometry as convolution_geometry
from acmix_jax.ops.shift_convolution import pallas_tpu as convolution_kernel
from acmix_jax.ops.shift_convolution import shifts, tpu_plan
from tests.ops import battery


def assert_near(results, wanted):
  for got, want in zip(results, wanted, strict=True):
    scale = np.abs(want).max()
    np.testing.assert_allclose(got / scale, want / scale, atol=5e-6)


def layer(kernel_size, strides, dilation):
  """The reference of x, projection, bias, slopes, kernel and alpha."""

  def run(x, projection, bias, slopes, kernel, alpha):
    maps = jnp.einsum('bhwc,icf->ibhwf', x, projection)
    maps += bias[:, None, None, None]
    q, k, v = maps.reshape(*maps.shape[:4], -1, slopes.shape[1])
    places = jnp.indices(q.shape[1:3])
    position = jnp.einsum('phw,pd->hwd', places, slopes)
    window = {'strides': strides, 'dilation': dilation}
    attended = reference.local_attention(
      q, k, v, position, kernel_size=kernel_size, **window
    )
    maps = jnp.concatenate([q, k, v], axis=3)
    identity = jnp.eye(maps.shape[3])
    convolved = reference.shift_convolution(maps, identity, kernel, **window)
    return alpha * attended.reshape(convolved.shape) + convolved

  return run


def arguments(size, channels, heads, depth, dtype='float32'):
  """Random arguments of two images."""
  features = heads * depth
  return [
    battery.normal(0, (2, *size, channels), dtype),
    battery.normal(1, (3, channels, features), dtype) / channels**0.5,
    battery.normal(2, (3, features), dtype),
    battery.normal(3, (2, depth)),
    battery.normal(4, (3, 3, 3 * heads, features), dtype),
    jnp.float32(0.7),
  ]


@pytest.mark.parametrize(
  ('size', 'channels', 'heads', 'depth', 'strides', 'dilation'),
  [
    ((6, 5), 40, 4, 64, 1, 2),
    ((11, 18), 24, 3, 16, 2, 1),
    pytest.param((8, 7), 8, 1, 200, 2, 1, marks=pytest.mark.slow),
  ],
)
def test_a_layer_equals_the_reference(
  size, channels, heads, depth, strides, dilation
):
  inputs = arguments(size, channels, heads, depth)
  run = functools.partial(
    local_acmix.local_acmix,
    kernel_size=3,
    strides=strides,
    dilation=dilation,
    implementation='pallas',
  )
  out, pullback = jax.vjp(jax.jit(run), *inputs)
  want, want_pullback = jax.vjp(jax.jit(layer(3, strides, dilation)), *inputs)
  dout = battery.normal(9, want.shape)
  assert_near([out, *pullback(dout)], [want, *want_pullback(dout)])


@pytest.mark.parametrize(
  ('size', 'heads', 'depth', 'strides', 'memory'),
  [
    # Odd maps whose rows several programs share.
    ((11, 9), 2, 8, 2, 0),
    ((9, 7), 4, 64, 1, 0),
    # Pixels that no tap sees, and maps that do not fill a register.
    ((7, 8), 3, 24, 3, tpu_plan._VMEM),
  ],
)
def test_convolution_equals_the_shifts(
  size, heads, depth, strides, memory, monkeypatch
):
  monkeypatch.setattr(tpu_plan, '_VMEM', memory)
  monkeypatch.setattr(tpu_plan, '_PIXELS', 32)
  maps = [battery.normal(i, (1, *size, heads, depth)) for i in range(3)]
  side = 3 if strides < 3 else 1
  kernel = battery.normal(5, (side, side, 3 * heads, heads * depth))
  problem = convolution_geometry.describe(maps, kernel, strides, 1)
  results = []
  for convolve in (convolution_kernel.interpret, shifts.convolve):
    run = jax.jit(functools.partial(convolve, problem))
    out, pullback = jax.vjp(run, maps, kernel)
    dout = battery.normal(9, out.shape)
    results.append(jax.tree.leaves([out, pullback(dout)]))
  assert_near(*results)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize(
  ('size', 'heads', 'depth', 'strides'),
  [((56, 56), 4, 16, 1), ((15, 13), 4, 64, 2), ((200, 336), 3, 32, 1)],
)
def test_convolution_lowers_for_tpu(size, heads, depth, strides, dtype):
  x = jax.ShapeDtypeStruct((2, *size, heads, depth), dtype)
  fc = jax.ShapeDtypeStruct((3 * heads, 9), dtype)
  kernel = jax.ShapeDtypeStruct((3, 3, 9, heads * depth), dtype)

  def total(maps, *weights):
    out = shift_convolution.shift_convolution(maps, *weights, strides=strides)
    return out.astype(jnp.float32).sum()

  gradient = jax.jit(jax.value_and_grad(total, (0, 1, 2)))
  lowered = gradient.trace([x] * 3, fc, kernel).lower(
    lowering_platforms=('tpu',)
  )
  assert lowered.as_text().count('tpu_custom_call') == 2


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize(
  ('size', 'heads', 'depth'), [((56, 56), 4, 16), ((7, 7), 4, 128)]
)
def test_a_layer_lowers_for_tpu_as_one(size, heads, depth, dtype):
  def total(*inputs):
    return local_acmix.local_acmix(*inputs).astype(jnp.float32).sum()

  inputs = jax.eval_shape(
    functools.partial(arguments, size, 64, heads, depth, dtype)
  )
  gradient = jax.jit(jax.value_and_grad(total, range(6)))
  lowered = gradient.trace(*inputs).lower(lowering_platforms=('tpu',))
  assert lowered.as_text().count('tpu_custom_call') == 2


def test_large_maps_are_left_to_two_operators():
  x = jax.ShapeDtypeStruct((1, 200, 336, 64), jnp.bfloat16)
  slopes = jax.ShapeDtypeStruct((2, 16), jnp.float32)
  kernel = jax.ShapeDtypeStruct((3, 3, 12, 64), jnp.bfloat16)
  problem = geometry.describe(x, slopes, kernel, 7, 1, 1)
  assert 'MiB on chip' in pallas_tpu.why_not(problem)


def test_chips_of_little_memory_get_smaller_programs(monkeypatch):
  x = jax.ShapeDtypeStruct((1, 56, 56, 64), jnp.bfloat16)
  slopes = jax.ShapeDtypeStruct((2, 16), jnp.float32)
  kernel = jax.ShapeDtypeStruct((3, 3, 12, 64), jnp.bfloat16)
  problem = geometry.describe(x, slopes, kernel, 7, 1, 1)
  assert pallas_tpu.why_not(problem) is None
  info = types.SimpleNamespace(vmem_capacity_bytes=2**24)
  monkeypatch.setattr(pltpu, 'get_tpu_info', lambda: info)
  assert '12 are allowed' in pallas_tpu.why_not(problem)
  plan = attention_plan.make_plan(problem.attention)
  assert plan.blocks > 1
  assert plan.vmem_bytes <= 12 * 2**20


def test_any_number_of_images_is_exported():
  inputs = jax.eval_shape(functools.partial(arguments, (8, 8), 8, 2, 8))
  x = jax.ShapeDtypeStruct(
    (*jax.export.symbolic_shape('b'), *inputs[0].shape[1:]), 'float32'
  )
  run = jax.jit(functools.partial(local_acmix.local_acmix, strides=2))
  platforms = 'cpu', 'cuda', 'tpu'
  exported = jax.export.export(run, platforms=platforms)(x, *inputs[1:])
  values = arguments((8, 8), 8, 2, 8)
  np.testing.assert_allclose(
    exported.call(*values), run(*values), rtol=1e-5, atol=1e-5
  )
