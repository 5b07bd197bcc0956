"""Operations written in another way on CPU: as XLA's own, gradients included.

These tests run on CPU; what other platforms run is the reference.
"""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from acmix_jax.nn import transformer
from acmix_jax.ops import xla_cpu


def random(seed, *shape, dtype=jnp.float32):
  return jax.random.normal(jax.random.key(seed), shape).astype(dtype)


def check_equal(ours, reference, *args):
  """The same values and gradients of all arguments, up to rounding."""
  out, pullback = jax.vjp(ours, *args)
  expected, expected_pullback = jax.vjp(reference, *args)
  assert out.dtype == expected.dtype
  dout = random(9, *out.shape, dtype=out.dtype)
  chex.assert_trees_all_close(
    (out, pullback(dout)),
    (expected, expected_pullback(dout)),
    rtol=1e-5,
    atol=1e-4,
  )


@pytest.mark.parametrize(
  ('side', 'strides', 'features'),
  [(1, 1, 4), (1, 2, 4), (3, 1, 4), (3, 2, 4), (3, 1, 515), (3, 2, 515)],
)
def test_convolution_is_that_of_lax(side, strides, features):
  pad = side // 2

  def reference(x, kernel):
    return lax.conv_general_dilated(
      x,
      kernel,
      (strides, strides),
      ((pad, pad), (pad, pad)),
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )

  def ours(x, kernel):
    return xla_cpu.convolution(x, kernel, strides)

  check_equal(
    ours, reference, random(0, 2, 7, 5, 6), random(1, side, side, 6, features)
  )


def test_convolution_of_many_images_in_parts_is_that_of_lax(monkeypatch):
  # Of one image: 7 x 5 pixels of 6 channels and of 4 features.
  monkeypatch.setattr(xla_cpu, '_VALUES', 7 * 5 * 10)
  x, kernel = random(0, 6, 7, 5, 6), random(1, 3, 3, 6, 4)
  convolve = jax.make_jaxpr(lambda x: xla_cpu.convolution(x, kernel, 1))
  # One of all images for other platforms.
  assert str(convolve(x)).count('conv_general_dilated[') == 6 + 1
  check_equal(
    lambda x, kernel: xla_cpu.convolution(x, kernel, 2),
    lambda x, kernel: lax.conv_general_dilated(
      x,
      kernel,
      (2, 2),
      ((1, 1), (1, 1)),
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    ),
    x,
    kernel,
  )


@pytest.mark.parametrize('axis', [1, 2])
def test_an_axis_is_multiplied_as_by_einsum(axis):
  equation = {1: 'oi,bijc->bojc', 2: 'oj,bijc->bioc'}[axis]
  x = random(0, 2, 4, 5, 3)
  check_equal(
    lambda matrix, x: xla_cpu.multiply_axis(matrix, x, axis),
    lambda matrix, x: jnp.einsum(equation, matrix, x),
    random(1, 7, x.shape[axis]),
    x,
  )


@pytest.mark.parametrize('size, padding', [(2, 0), (3, 1)])
@pytest.mark.parametrize('h, w', [(8, 6), (7, 9)])
def test_max_pool_is_that_of_flax(size, padding, h, w):
  pads = ((padding, padding), (padding, padding))
  # Few levels: most windows hold the largest value more than once.
  x = jnp.round(random(0, 2, h, w, 3))
  check_equal(
    lambda x: xla_cpu.max_pool(x, size, padding),
    lambda x: nn.max_pool(x, (size, size), (2, 2), pads),
    x,
  )


def test_max_pool_keeps_nan():
  for y, x in np.ndindex(2, 2):
    image = np.zeros((1, 2, 2, 1), np.float32)
    image[0, y, x] = np.nan
    assert np.isnan(xla_cpu.max_pool(jnp.asarray(image), 2)).all()


def test_adds_to_each_image():
  check_equal(
    xla_cpu.add_to_each,
    lambda x, y: x + y[None],
    random(0, 3, 4, 5, 2),
    random(1, 4, 5, 2),
  )


def test_zeros_are_zeros_whatever_they_are_made_of():
  x = jnp.asarray([1.0, -jnp.inf, jnp.inf, jnp.nan], jnp.bfloat16)
  zeros = xla_cpu.zeros(x)
  assert zeros.dtype == jnp.float32
  np.testing.assert_array_equal(zeros, np.zeros(4))
  assert xla_cpu.zero(x, jnp.full((1, 1), jnp.inf)) == 0


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_gelu_is_exact(dtype):
  x = jnp.linspace(-6, 6, 1001).astype(dtype)
  expected = [
    0.5 * value * math.erfc(-value * math.sqrt(0.5))
    for value in np.asarray(x, np.float64)
  ]
  rounding = float(jnp.finfo(dtype).eps)
  y = transformer.gelu(x)
  assert y.dtype == x.dtype
  np.testing.assert_allclose(
    np.asarray(y, np.float64), expected, rtol=rounding, atol=1e-6
  )
