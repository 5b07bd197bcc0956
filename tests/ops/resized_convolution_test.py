"""Convolution of maps of several sizes: that of the resized, concatenated."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from acmix_jax.ops import resize
from acmix_jax.ops.resized_convolution import resized_convolution


def plain(maps, kernel):
  size = maps[0].shape[1:3]
  return lax.conv_general_dilated(
    jnp.concatenate([resize.bilinear(x, size) for x in maps], axis=-1),
    kernel,
    (1, 1),
    'SAME',
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    preferred_element_type=jnp.float32,
  )


def make_inputs(sizes, kernel_size, dtype=jnp.float32):
  keys = iter(jax.random.split(jax.random.key(0), len(sizes) + 1))
  maps = [
    jax.random.normal(next(keys), (2, *size, channels)).astype(dtype)
    for channels, size in enumerate(sizes, start=3)
  ]
  channels = sum(x.shape[-1] for x in maps)
  kernel = jax.random.normal(next(keys), (*kernel_size, channels, 4))
  return maps, kernel.astype(dtype)


@pytest.mark.parametrize(
  ('sizes', 'kernel_size'),
  [
    ([(8, 12), (4, 6), (2, 3), (1, 1)], (3, 3)),
    ([(7, 9), (4, 5), (7, 9)], (3, 3)),
    # As where a map has fewer pixels than the pooling has bins.
    ([(5, 7), (6, 6)], (3, 3)),
    ([(7, 6), (3, 2)], (1, 5)),
    ([(4, 4)], (3, 3)),
  ],
)
def test_values_and_gradients_are_those_of_resized_maps(sizes, kernel_size):
  maps, kernel = make_inputs(sizes, kernel_size)
  out, pull = jax.vjp(resized_convolution, maps, kernel)
  expected, expected_pull = jax.vjp(plain, maps, kernel)
  dout = jax.random.normal(jax.random.key(1), out.shape)
  jax.tree.map(
    lambda ours, theirs: np.testing.assert_allclose(
      ours, theirs, rtol=0, atol=2e-6 * jnp.abs(theirs).max()
    ),
    (out, pull(dout)),
    (expected, expected_pull(dout)),
  )


def test_bfloat16_errs_little_more_than_its_rounding():
  maps, kernel = make_inputs([(8, 8), (4, 4), (2, 2)], (3, 3), jnp.bfloat16)
  out = resized_convolution(maps, kernel)
  assert out.dtype == jnp.bfloat16
  exact = plain(
    [x.astype(jnp.float32) for x in maps], kernel.astype(jnp.float32)
  )
  error = jnp.abs(out.astype(jnp.float32) - exact).max() / jnp.abs(exact).max()
  assert error < 2**-7
