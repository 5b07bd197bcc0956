"""Resized and pooled maps, and their matrices, against OpenCV and loops."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from acmix_jax.ops import resize


def random(*shape):
  return jax.random.normal(jax.random.key(0), shape)


@pytest.mark.parametrize('size', [(10, 14), (3, 4), (9, 7), (5, 20)])
def test_bilinear_is_opencvs_up_and_down(size):
  x = random(2, 5, 7, 3)
  want = [cv2.resize(np.asarray(y), size[::-1]) for y in x]
  np.testing.assert_allclose(resize.bilinear(x, size), want, atol=2e-6)


def test_doubling_is_exact_in_bfloat16():
  x = jnp.round(64 * random(1, 4, 5, 2)).astype(jnp.bfloat16)
  got = resize.bilinear(x[:, :, :1], (8, 1))
  assert got.dtype == jnp.bfloat16
  want = resize.bilinear(x[:, :, :1].astype(jnp.float32), (8, 1))
  np.testing.assert_array_equal(got, want.astype(jnp.bfloat16))


@pytest.mark.parametrize(
  ('old', 'new', 'want'),
  [
    (5, 9, [0, 0, 1, 1, 2, 2, 3, 3, 4]),
    (3, 6, [0, 0, 1, 1, 2, 2]),
    (6, 4, [0, 1, 3, 4]),
  ],
)
def test_nearest_is_the_floor_of_the_ratio(old, new, want):
  x = random(2, old, 3, 4)
  got = resize.nearest(x, (new, 3))
  np.testing.assert_array_equal(got, np.asarray(x)[:, want])
  got = resize.nearest(x.swapaxes(1, 2), (3, new)).swapaxes(1, 2)
  np.testing.assert_array_equal(got, np.asarray(x)[:, want])


@pytest.mark.parametrize('bins', [1, 2, 3, 6])
def test_bins_overlap_and_may_be_more_than_pixels(bins):
  x = random(2, 5, 4, 3)

  def pixels(i, side):
    return slice(i * side // bins, -(-(i + 1) * side // bins))

  want = [
    [
      np.asarray(x)[:, pixels(i, 5), pixels(j, 4)].mean((1, 2))
      for j in range(bins)
    ]
    for i in range(bins)
  ]
  want = np.transpose(want, (2, 0, 1, 3))
  got = resize.adaptive_average_pool(x, bins)
  np.testing.assert_allclose(got, want, atol=1e-6)


def test_a_map_of_the_wanted_size_stays_as_it_is():
  x = random(1, 4, 5, 2)
  for f in (resize.bilinear, resize.nearest):
    jaxpr = jax.make_jaxpr(lambda x, f=f: f(x, (4, 5)))(x)
    assert not jaxpr.eqns


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
