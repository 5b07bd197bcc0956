"""Every implementation of local attention against the reference."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from acmix_jax.ops import (
  attention,
  implementations,
  local_attention,
  reference,
)
from acmix_jax.ops.local_attention import geometry
from tests.ops import battery

_, *NAMES = implementations.names(local_attention.IMPLEMENTATIONS)


@pytest.mark.parametrize('case', battery.cases())
@pytest.mark.parametrize('name', NAMES)
@pytest.mark.usefixtures('kernels')
def test_implementations_equal_the_reference(name, case):
  if name == 'pallas' and case not in battery.CASES[:1]:
    pytest.skip('Interpreted, it is slow; pallas_test.py has its battery.')
  shape = (2, case.h, case.w, case.heads, case.depth)
  inputs = [battery.normal(i, shape, case.dtype) for i in range(3)]
  inputs.append(battery.normal(3, (2, case.depth)))
  problem = geometry.describe(
    *inputs[:3], case.kernel, case.strides, case.dilation
  )
  battery.skip_unless_served(local_attention.IMPLEMENTATIONS, name, problem)
  options = dict(kernel_size=case.kernel, **case.options)

  def exact_run(q, k, v, slopes):
    places = jnp.indices((case.h, case.w))
    position = jnp.einsum('phw,pd->hwd', places, slopes)
    return reference.local_attention(q, k, v, position, **options)

  battery.assert_same(
    jax.jit(
      functools.partial(
        local_attention.local_attention, implementation=name, **options
      )
    ),
    exact_run,
    inputs,
    case.dtype,
    terms=case.kernel**2 + case.depth,
  )


def test_the_values_keep_their_precision_beside_queries_of_less():
  shape = (1, 9, 8, 2, 4)
  q, k = (battery.normal(i, shape, 'bfloat16') for i in range(2))
  v = battery.normal(2, shape)
  tiles, patches = (
    local_attention.local_attention(q, k, v, implementation=name)
    for name in ('tiles', 'patches')
  )
  assert tiles.dtype == v.dtype
  np.testing.assert_allclose(tiles, patches, rtol=1e-5, atol=1e-6)


def test_large_logits_neither_overflow_nor_vanish():
  q = jnp.full((1, 8, 8, 1, 4), 60.0, jnp.float16)
  v = battery.normal(0, (1, 8, 8, 1, 4), jnp.float16)
  for name in ('patches', 'tiles'):
    out = local_attention.local_attention(q, q, v, implementation=name)
    want = reference.local_attention(
      jnp.zeros_like(q), q, v.astype(jnp.float32)
    )
    np.testing.assert_allclose(out, want, atol=2e-3)


@pytest.mark.parametrize(
  ('shape', 'options', 'message'),
  [
    ((1, 3, 9, 1, 4), {}, 'smallest side that works is 4'),
    ((1, 6, 9, 1, 4), {'dilation': 2}, 'smallest side that works is 7'),
    ((1, 8, 8, 1, 4), {'kernel_size': 4}, 'nearest that works: 5'),
    ((1, 8, 8, 1, 4), {'strides': 0}, 'strides=0'),
    ((8, 8, 1, 4), {}, r'\[b, h, w, n, d\]'),
    (
      (1, 8, 8, 1, 4),
      {'implementation': 'tile'},
      "'tile' is unknown. Did you mean 'tiles'",
    ),
  ],
)
@pytest.mark.usefixtures('without_shape_checks')
def test_local_attention_names_what_is_wrong(shape, options, message):
  x = jax.ShapeDtypeStruct(shape, jnp.float32)
  run = functools.partial(local_attention.local_attention, **options)
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(run, x, x, x)


@pytest.mark.parametrize('dtype', ['float32', 'float64'])
@pytest.mark.parametrize('name', ['auto', 'patches'])
def test_local_attention_traces_beside_64_bit_numbers(name, dtype):
  with jax.enable_x64(True):
    x = jax.ShapeDtypeStruct((1, 9, 8, 2, 16), dtype)
    run = functools.partial(gradients, strides=2, implementation=name)
    assert all(x.dtype == dtype for x in jax.eval_shape(run, x, x, x))


@pytest.mark.parametrize('platform', ['tpu', 'cuda'])
def test_kernels_lower_beside_64_bit_numbers(platform):
  with jax.enable_x64(True):
    x = jax.ShapeDtypeStruct((1, 9, 8, 2, 16), 'float32')
    run = functools.partial(gradients, strides=2, implementation='pallas')
    jax.jit(run).trace(x, x, x).lower(lowering_platforms=(platform,))


def gradients(*maps, **options):
  run = functools.partial(local_attention.local_attention, **options)
  out, pullback = jax.vjp(run, *maps)
  return pullback(out)


@pytest.mark.parametrize('name', ['tiles', 'pallas'])
def test_nothing_infinite_is_made(name):
  maps = [battery.normal(i, (1, 3, 4, 1, 4)) for i in range(3)]
  with jax.debug_infs(True), jax.debug_nans(True):
    gradients(*maps, kernel_size=3, implementation=name)


def test_masked_keys_count_for_nothing_and_are_finite():
  q, k, v = (battery.normal(i, (1, 3, 1, 4)) for i in range(3))
  mask = np.tril(np.ones((1, 1, 3, 3), bool))
  with jax.debug_infs(True):
    out = attention.attention(q, k, v, mask=jnp.asarray(mask))
  for i in range(3):
    alone = attention.attention(q[:, i : i + 1], k[:, : i + 1], v[:, : i + 1])
    np.testing.assert_allclose(out[:, i], alone[:, 0], rtol=1e-6)
