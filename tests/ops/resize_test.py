"""Rows of the matrices of bilinear resizing, for sizes on the device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from acmix_jax.ops import resize


@pytest.mark.parametrize('old', [1, 2, 13])
@pytest.mark.parametrize('new', [1, 5, 13, 26, 50])
def test_rows_are_those_of_the_matrix_of_constants(old, new):
  rows = resize.linear_rows(jnp.arange(new), old, jnp.array([new]))
  np.testing.assert_allclose(rows, resize.linear_matrix(old, new), atol=1e-7)


def test_a_size_of_its_own_for_each_image():
  pixels = jnp.broadcast_to(jnp.arange(3, 7), (2, 4))
  of_images = jax.jit(resize.linear_rows, static_argnums=1)(
    pixels, 8, jnp.array([[5], [31]])
  )
  for rows, new in zip(of_images, (5, 31), strict=True):
    expected = resize.linear_matrix(8, new)
    inside = min(new, 7) - 3
    np.testing.assert_allclose(rows[:inside], expected[3:7], atol=1e-7)
    np.testing.assert_array_equal(rows[inside:, -1], 1)
    np.testing.assert_array_equal(rows[inside:, :-1], 0)


def test_no_digits_are_lost_on_long_lines():
  rows = resize.linear_rows(jnp.array([8190]), 4096, jnp.array([8192]))
  # (8190.5 / 2) - 0.5 = 4094.75
  np.testing.assert_array_equal(rows[0, -2:], [0.25, 0.75])
  np.testing.assert_array_equal(rows[0, :-2], 0)
