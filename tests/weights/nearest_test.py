"""Convolutions and the convolution paths that are nearest to them."""

import jax
import numpy as np
import pytest

import acmix_jax
from acmix_jax.weights import nearest


def _dense(path, num_heads):
  """The kernel [s, s, ci, co] that a path is, by its definition."""
  _, inputs, outputs = path.projections.shape
  width = outputs // num_heads
  size, _, taps, _ = path.depthwise_kernel.shape
  kernel = np.zeros((size, size, inputs, outputs))
  for c in range(outputs):
    for t in range(taps):
      for m in range(3 * num_heads):
        part, head = divmod(m, num_heads)
        projection = path.projections[part, :, head * width + c // num_heads]
        kernel[..., c] += (
          path.fc_kernel[m, t]
          * path.depthwise_kernel[:, :, None, t, c]
          * projection
        )
  return kernel


def _kernel(inputs, outputs):
  return np.random.default_rng(0).normal(size=(3, 3, inputs, outputs))


@pytest.mark.parametrize('num_heads', [1, 2, 4])
def test_no_path_is_nearer(num_heads):
  kernel = _kernel(14, 8)
  path = nearest.nearest_path(kernel, num_heads)
  difference = _dense(path, num_heads) - kernel
  error = np.linalg.norm(difference) / np.linalg.norm(kernel)
  assert path.error == pytest.approx(error)
  # Eckart and Young: what a matrix of a lower rank must lose.
  lost = 0
  for group in np.split(kernel, 8 // num_heads, axis=3):
    matrix = group.swapaxes(0, 2).reshape(14, -1)
    rank = min(3 * num_heads, 9)
    lost += np.sum(np.linalg.svd(matrix)[1][rank:] ** 2)
  assert path.error == pytest.approx(lost**0.5 / np.linalg.norm(kernel))
  assert path.error > 0.1


@pytest.mark.parametrize(
  ('num_heads', 'strides', 'size'), [(4, 1, 3), (4, 2, 3), (2, 1, 5)]
)
def test_layers_compute_the_convolutions_that_they_can(
  num_heads, strides, size
):
  kernel = _kernel(3 * num_heads - 3, 8)
  path = nearest.nearest_path(kernel, num_heads, size)
  assert path.error < 1e-12
  layer = acmix_jax.ACmix(
    8, num_heads, kernel_att=3, kernel_conv=size, strides=strides
  )
  images = jax.random.normal(jax.random.key(0), (2, 7, 6, kernel.shape[2]))
  variables = layer.init(jax.random.key(1), images)
  params = variables['params'] | {
    'alpha': 0.0,
    'beta': 1.0,
    'fc_kernel': path.fc_kernel,
    'depthwise_kernel': path.depthwise_kernel,
  }
  for name, projection in zip(
    ('query', 'key', 'value'), path.projections, strict=True
  ):
    params['attention'][name] = {'kernel': projection, 'bias': np.zeros(8)}
  ours = layer.apply({'params': jax.tree.map(np.float32, params)}, images)
  expected = jax.lax.conv_general_dilated(
    images,
    np.float32(kernel),
    (strides, strides),
    [(1, 1), (1, 1)],
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )
  np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


def test_kernels_larger_than_the_path_are_refused():
  with pytest.raises(ValueError, match='kernel_conv=3 is the smallest'):
    nearest.nearest_path(_kernel(4, 4), 4, 1)
