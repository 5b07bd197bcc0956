"""The fused kernels of local attention against the reference."""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from acmix_jax.ops import local_attention, reference
from acmix_jax.ops.local_attention import (
  geometry,
  pallas_gpu,
  pallas_tpu,
  tpu_plan,
)

_KERNELS = {'tpu': pallas_tpu, 'gpu': pallas_gpu}


class Case(NamedTuple):
  h: int
  w: int
  heads: int = 2
  depth: int = 16
  kernel: int = 7
  strides: int = 1
  dilation: int = 1
  dtype: str = 'float32'
  slope: float = 0.3

  @property
  def window(self):
    return self.kernel, self.strides, self.dilation


CASES = [
  Case(7, 7, heads=4),
  Case(5, 9, heads=1, depth=128, kernel=3, strides=2),
  Case(8, 5, heads=3, depth=64, kernel=5),
  Case(9, 8, depth=48, kernel=5, dilation=2),
  Case(9, 17, depth=32, strides=2, dtype='bfloat16'),
]


def normal(seed, shape, dtype):
  values = np.random.default_rng(seed).standard_normal(shape)
  return jnp.asarray(values, dtype)


def problem(case):
  """Inputs, the dout, and the reference's output and gradients."""
  shape = (2, case.h, case.w, case.heads, case.depth)
  inputs = [normal(i, shape, case.dtype) for i in range(3)]
  inputs.append(case.slope * normal(4, (2, case.depth), 'float32'))

  def run_reference(q, k, v, slopes):
    places = jnp.indices((case.h, case.w))
    return reference.local_attention(
      q,
      k,
      v,
      jnp.einsum('phw,pd->hwd', places, slopes, precision='highest'),
      kernel_size=case.kernel,
      strides=case.strides,
      dilation=case.dilation,
    )

  exact = [x.astype(jnp.float32) for x in inputs]
  out, pullback = jax.vjp(run_reference, *exact)
  dout = normal(3, out.shape, case.dtype)
  return inputs, dout, [out, *pullback(dout.astype(jnp.float32))]


def assert_same(results, wanted, dtype):
  """Compares numbers near 1, or scaled to be."""
  # In float32 a position of 27, the largest here, is rounded by 2e-6.
  tolerance = {'float32': 2e-5, 'bfloat16': 2e-2}[dtype]
  for number, (result, want) in enumerate(zip(results, wanted, strict=True)):
    # The last, if there are five, is the gradient of the slopes.
    assert result.dtype == (dtype if number < 4 else 'float32')
    scale = np.abs(want).max()
    np.testing.assert_allclose(
      np.asarray(result, np.float32) / scale, want / scale, atol=tolerance
    )


def run(kernels, case, inputs, dout, interpret=True):
  """Output and gradients, with q strided as the caller does."""

  def attend(q, k, v, slopes):
    q = q[:, :: case.strides, :: case.strides]
    described = geometry.describe(q, k, v, *case.window)
    return kernels.attend(described, q, k, v, slopes, interpret)

  out, pullback = jax.vjp(attend, *inputs)
  return [out, *pullback(dout)]


@pytest.mark.parametrize('case', CASES, ids=str)
@pytest.mark.parametrize('platform', _KERNELS)
def test_kernels_equal_the_reference(platform, case):
  inputs, dout, wanted = problem(case)
  compute = jax.jit(functools.partial(run, _KERNELS[platform], case))
  assert_same(compute(inputs, dout), wanted, case.dtype)


@pytest.mark.parametrize('platform', _KERNELS)
def test_kernels_have_positions_that_their_keys_have_no_bits_for(platform):
  case = Case(3, 130, heads=1, kernel=3, dtype='bfloat16', slope=4)
  inputs, dout, wanted = problem(case)
  compute = jax.jit(functools.partial(run, _KERNELS[platform], case))
  assert_same(compute(inputs, dout), wanted, case.dtype)


@pytest.mark.parametrize(
  'case',
  [
    Case(23, 9, heads=1, kernel=3),
    Case(21, 9, heads=1, kernel=3, strides=2),
    Case(9, 37, heads=1, kernel=3, dilation=2),
  ],
  ids=str,
)
def test_tpu_kernel_cuts_maps_into_blocks_of_rows(case, monkeypatch):
  monkeypatch.setattr(tpu_plan.kernels, 'vmem_budget', lambda: 1)
  monkeypatch.setattr(tpu_plan, '_QUERIES', 32)
  inputs, dout, wanted = problem(case)
  compute = jax.jit(functools.partial(run, pallas_tpu, case))
  assert_same(compute(inputs, dout), wanted, case.dtype)


def test_tpu_kernel_never_uses_memory_beyond_a_map(monkeypatch):
  case = Case(9, 5, heads=1, kernel=3)
  monkeypatch.setattr(tpu_plan.kernels, 'vmem_budget', lambda: 1)
  monkeypatch.setattr(tpu_plan, '_QUERIES', 32)
  inputs, dout, wanted = problem(case)
  emulate = pltpu.InterpretParams(uninitialized_memory='nan')
  results = run(pallas_tpu, case, inputs, dout, emulate)
  assert_same(results, wanted, case.dtype)


def loss(q, k, v):
  out = local_attention.local_attention(
    q, k, v, kernel_size=3, implementation='pallas'
  )
  return jnp.sum(out**2)


SPLIT = jax.sharding.PartitionSpec(('data', 'model'))
SAME = {'rtol': 1e-5, 'atol': 1e-6}
value_and_gradients = jax.value_and_grad(loss, (0, 1, 2))


@pytest.fixture
def mesh():
  auto = (jax.sharding.AxisType.Auto,) * 2
  return jax.make_mesh((4, 2), ('data', 'model'), axis_types=auto)


def on_one_device(count):
  """Images, and what they give on one device."""
  inputs = [normal(i, (count, 3, 4, 1, 16), 'float32') for i in range(3)]
  return inputs, jax.jit(value_and_gradients)(*inputs)


def test_devices_keep_their_own_images(mesh):
  inputs, wanted = on_one_device(8)
  split = jax.sharding.NamedSharding(mesh, SPLIT)
  inputs = [jax.device_put(x, split) for x in inputs]
  with jax.set_mesh(mesh):
    compiled = jax.jit(value_and_gradients).lower(*inputs).compile()
  assert 'all-gather' not in compiled.as_text()
  results = compiled(*inputs)
  assert all(x.sharding.spec == SPLIT for x in results[1])
  chex.assert_trees_all_close(results, wanted, **SAME)


def test_images_that_do_not_divide_are_computed_by_every_device(mesh):
  inputs, wanted = on_one_device(6)
  with jax.set_mesh(mesh):
    results = jax.jit(value_and_gradients)(*inputs)
  assert all(x.sharding.is_fully_replicated for x in results[1])
  chex.assert_trees_all_close(results, wanted, **SAME)


@pytest.mark.parametrize('axes', [('data',), ('data', 'model')])
def test_a_caller_may_split_the_images_over_some_axes(mesh, axes):
  inputs, wanted = on_one_device(8)

  def run(*inputs):
    value, gradients = value_and_gradients(*inputs)
    return jax.lax.psum(value, axes), gradients

  images = jax.sharding.PartitionSpec(axes)
  split = jax.shard_map(
    run,
    mesh=mesh,
    in_specs=images,
    out_specs=(jax.sharding.PartitionSpec(), images),
    axis_names=set(axes),
    check_vma=False,
  )
  chex.assert_trees_all_close(jax.jit(split)(*inputs), wanted, **SAME)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize(
  ('shape', 'window'),
  [
    ((2, 56, 56, 4, 16), (7, 1, 1)),
    ((1, 7, 7, 4, 128), (7, 1, 1)),
    ((1, 15, 13, 2, 64), (7, 2, 1)),
    ((1, 30, 100, 3, 32), (3, 1, 2)),
  ],
)
@pytest.mark.parametrize(
  ('platform', 'call'), [('tpu', 'tpu_custom_call'), ('cuda', 'gpu.triton')]
)
def test_kernels_lower_for_their_platform(platform, call, shape, window, dtype):
  x = jax.ShapeDtypeStruct(shape, dtype)
  kernel_size, strides, dilation = window

  def total(q, k, v):
    out = local_attention.local_attention(
      q,
      k,
      v,
      kernel_size=kernel_size,
      strides=strides,
      dilation=dilation,
      implementation='pallas',
    )
    return out.astype(jnp.float32).sum()

  gradient = jax.jit(jax.value_and_grad(total, (0, 1, 2)))
  with jax.numpy_dtype_promotion('strict'):
    lowered = gradient.trace(x, x, x).lower(lowering_platforms=(platform,))
  assert lowered.as_text().count(call) == {'tpu': 2, 'cuda': 3}[platform]


def test_kernels_are_traced_where_they_are_compiled(monkeypatch):
  traced = []
  for platform, kernels in _KERNELS.items():
    original = kernels._forward_kernel

    def record(*refs, platform=platform, original=original, **options):
      traced.append((platform, jax.config.jax_default_matmul_precision))
      return original(*refs, **options)

    monkeypatch.setattr(kernels, '_forward_kernel', record)

  def run(q, k, v):
    with jax.default_matmul_precision('bfloat16'):
      return local_attention.local_attention(q, k, v, kernel_size=3)

  inputs = [normal(i, (1, 3, 4, 1, 16), 'float32') for i in range(3)]
  wanted = jax.jit(run)(*inputs)
  assert traced == []
  platforms = ('cpu', 'tpu')
  exported = jax.export.export(jax.jit(run), platforms=platforms)(*inputs)
  assert set(traced) == {('tpu', 'bfloat16')}
  assert exported.mlir_module().count('tpu_custom_call') == 1
  assert_same([exported.call(*inputs)], [wanted], 'float32')


@pytest.mark.parametrize(
  ('shape', 'window', 'dtype', 'platforms'),
  [
    ((1, 56, 56, 4, 16), (7, 1, 1), 'bfloat16', {'tpu', 'gpu'}),
    ((1, 100, 152, 4, 32), (7, 1, 1), 'bfloat16', {'tpu', 'gpu'}),
    ((1, 200, 304, 4, 16), (7, 1, 1), 'bfloat16', {'tpu', 'gpu'}),
    ((4, 400, 400, 4, 16), (7, 1, 1), 'bfloat16', {'tpu', 'gpu'}),
    ((1, 14, 14, 2, 256), (7, 1, 1), 'float32', {'tpu'}),
    ((1, 64, 64, 2, 32), (31, 1, 2), 'bfloat16', {'tpu'}),
    ((1, 14, 14, 4, 16), (7, 1, 1), 'float16', set()),
  ],
)
def test_kernels_say_what_they_serve(shape, window, dtype, platforms):
  x = jax.ShapeDtypeStruct(shape, dtype)
  described = geometry.describe(x, x, x, *window)
  reasons = {
    platform: kernels.why_not(described)
    for platform, kernels in _KERNELS.items()
  }
  assert {p for p, reason in reasons.items() if reason is None} == platforms


def test_pallas_says_why_it_cannot_serve():
  x = jax.ShapeDtypeStruct((1, 14, 14, 4, 16), jnp.float16)
  run = functools.partial(
    local_attention.local_attention, implementation='pallas'
  )
  with pytest.raises(
    ValueError, match='GPU takes float32 and bfloat16, not fl'
  ):
    jax.eval_shape(run, x, x, x)
