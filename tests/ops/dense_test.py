"""The linear map of channels in all of its forms: as a product and a sum."""

import chex
import jax
import jax.numpy as jnp
import pytest
from jax import lax

from acmix_jax.ops import dense


def random(seed, *shape):
  return jax.random.normal(jax.random.key(seed), shape)


def reference(x, kernel, bias=None):
  y = jnp.einsum('...c,cf->...f', x, kernel)
  return y if bias is None else y + jnp.broadcast_to(bias, y.shape)


@pytest.fixture(params=['cpu', 'tpu', 'cuda'])
def on(request, monkeypatch):
  """A platform, whose form is taken here."""

  def take(*arrays, default, **forms):
    return forms.get(request.param, default)(*arrays)

  monkeypatch.setattr(lax, 'platform_dependent', take)
  return request.param


@pytest.mark.parametrize('shape', [(6,), (3, 6), (2, 5, 6), (2, 3, 4, 6)])
@pytest.mark.parametrize('has_bias', [True, False])
def test_all_forms_are_the_product_and_sum(on, shape, has_bias):
  arrays = random(0, *shape), random(1, 6, 4), random(2, 4)
  arrays = arrays if has_bias else arrays[:2]
  out, pullback = jax.vjp(dense.dense, *arrays)
  expected, expected_pullback = jax.vjp(reference, *arrays)
  dout = random(3, *out.shape)
  chex.assert_trees_all_close(
    (out, pullback(dout)), (expected, expected_pullback(dout)), atol=1e-5
  )


def _text(*arrays):
  # A function of its own: of one that it knows jax keeps what it traced.
  return str(jax.make_jaxpr(lambda *arrays: dense.dense(*arrays))(*arrays))


def test_sixteen_bits_are_summed_in_more(on):
  arrays = random(0, 2, 3, 4, 6), random(1, 6, 4), random(2, 4)
  arrays = [x.astype(jnp.bfloat16) for x in arrays]
  assert ('bf16[7,4]' in _text(*arrays)) == (on == 'tpu')
  out, pullback = jax.vjp(dense.dense, *arrays)
  exact = [x.astype(jnp.float32) for x in arrays]
  expected, expected_pullback = jax.vjp(reference, *exact)
  found = out, *pullback(jnp.ones_like(out))
  wanted = expected, *expected_pullback(jnp.ones_like(expected))
  for x, y in zip(found, wanted, strict=True):
    assert x.dtype == jnp.bfloat16
    error = jnp.abs(x.astype(jnp.float32) - y).max()
    assert error <= 2**-7 * jnp.abs(y).max()


def test_no_row_is_added_where_the_channels_fill_the_unit(on):
  x, kernel, bias = random(0, 2, 128), random(1, 128, 4), random(2, 4)
  assert '129' not in _text(
    *[a.astype(jnp.bfloat16) for a in (x, kernel, bias)]
  )
