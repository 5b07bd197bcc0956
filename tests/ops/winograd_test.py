"""Convolutions by fewer products: XLA's, with all gradients."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from acmix_jax.ops import winograd, xla_cpu


def random(seed, *shape, dtype=jnp.float32):
  return jax.random.normal(jax.random.key(seed), shape).astype(dtype)


def plain(x, kernel):
  return lax.conv_general_dilated(
    x,
    kernel,
    (1, 1),
    'SAME',
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )


@pytest.mark.parametrize('size', [(6, 8), (7, 5), (1, 2)])
@pytest.mark.parametrize('values', [2**22, 1000])
def test_the_convolution_and_its_gradients_are_those_of_lax(
  size, values, monkeypatch
):
  """Of even and odd sizes, whole and in parts that cut an image."""
  monkeypatch.setattr(winograd, '_VALUES', values)
  x, kernel = random(0, 2, *size, 3), random(1, 3, 3, 3, 4)

  def with_gradients(convolve):
    out, pullback = jax.vjp(convolve, x, kernel)
    return out, pullback(random(2, *out.shape))

  found = jax.jit(
    lambda: with_gradients(lambda *x: winograd.convolution(plain, *x))
  )
  chex.assert_trees_all_close(found(), with_gradients(plain), atol=1e-5)


def test_forward_mode_is_that_of_lax():
  arrays = random(0, 1, 4, 5, 3), random(1, 3, 3, 3, 4)
  tangents = random(2, 1, 4, 5, 3), random(3, 3, 3, 3, 4)
  _, found = jax.jvp(
    lambda *x: winograd.convolution(plain, *x), arrays, tangents
  )
  _, wanted = jax.jvp(plain, arrays, tangents)
  np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_it_is_taken_on_cpu_where_it_pays():
  x, kernel = random(0, 1, 32, 32, 256), random(1, 3, 3, 256, 256) / 48

  def products(x, kernel, strides=1):
    program = jax.jit(xla_cpu.convolution, static_argnums=2)
    text = program.lower(x, kernel, strides).as_text()
    return text.count('stablehlo.dot_general')

  assert products(x, kernel) == 1
  assert not products(x[:, :31], kernel)
  assert not products(x, kernel, 2)
  assert not products(x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16))
  assert not products(x[..., :255], kernel[:, :, :255])
  assert not products(jnp.tile(x, (20, 1, 1, 1)), kernel)
  found = jax.jit(xla_cpu.convolution, static_argnums=2)(x, kernel, 1)
  error = jnp.abs(found - plain(x, kernel)).max()
  assert error <= 2e-6 * jnp.abs(found).max()
