"""Classes of pixels against mmsegmentation and step by step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from acmix_jax.tasks import pixel_predictions
from acmix_jax.tasks.pixel_predictions import Windows
from tests.fixtures import official, seeded
from tests.nn.heads import segmentation_test

KERNEL = np.random.default_rng(0).normal(size=(48, 5)).astype(np.float32)


def model(images):
  """Logits of patches of 4 x 4 pixels, rounded down."""
  b, h, w, _ = images.shape
  h, w = h // 4, w // 4
  patches = images[:, : 4 * h, : 4 * w].reshape(b, h, 4, w, 4, 3)
  return patches.transpose(0, 1, 3, 2, 4, 5).reshape(b, h, w, 48) @ KERNEL


def resized(x, size):
  shape = (*x.shape[:-3], *size, x.shape[-1])
  return jax.image.resize(x, shape, 'bilinear', antialias=False)


def step_by_step(images, size, starts=None, length=0, mirrored=False):
  """Probabilities of one image [h, w, 3] by the sources' steps."""
  images = images[:, ::-1] if mirrored else images
  if starts is None:
    logits = resized(model(images[None])[0], images.shape[:2])
  else:
    total, count = np.zeros((*images.shape[:2], 5)), 0
    count = np.zeros(images.shape[:2])
    for y, x in starts:
      window = np.s_[y : y + length, x : x + length]
      crop = images[window]
      total[window] += resized(model(crop[None])[0], crop.shape[:2])
      count[window] += 1
    logits = total / count[..., None]
  probabilities = jax.nn.softmax(resized(logits, size))
  return probabilities[:, ::-1] if mirrored else probabilities


def whole(images, mirrored=False):
  windows = tuple(Windows.whole(side) for side in images.shape[1:3])
  return pixel_predictions.make_view(model, images, windows, mirrored)


def classify(views, images, sizes):
  """Classes of views of images on a canvas of 40 x 60 pixels."""

  @jax.jit
  def run(images):
    return pixel_predictions.class_maps(
      views(images), jnp.array(sizes), (40, 60)
    )

  return run(images)


@pytest.fixture(params=[1, 3])
def bands(request, monkeypatch):
  """Bands of 40 rows of 60 pixels and 5 classes."""
  size = 40 * 60 * 5 / (request.param - 0.5)
  monkeypatch.setattr(pixel_predictions, '_BAND_SIZE', size)


@pytest.fixture(scope='module', params=['fpn_inference', 'uper_inference'])
def source(request):
  """The heads of a fixture on its stand-in backbone, specification, arrays."""
  config, arrays = official.segmentation_heads(request.param)
  spec = official.segmentation_spec(request.param)
  module = segmentation_test.heads(config)

  def backbone(images):
    x, maps = images, []
    single = classify(lambda images: views(images)[:1], (small, large), [size])

  assert np.any(single[0, : size[0], : size[1]] != expected)


def test_confusion_counts_pixels_with_a_label(bands):
  rng = np.random.default_rng(4)
  labels = rng.integers(0, 5, (2, 40, 60)).astype(np.uint8)
  labels[:, ::3] = 255
  predicted = rng.integers(0, 5, (2, 40, 60)).astype(np.int32)
  expected = np.zeros((5, 5), int)
  known = labels != 255
  np.add.at(expected, (labels[known], predicted[known]), 1)
  matrix = pixel_predictions.confusion_matrix(
    jnp.asarray(predicted), jnp.asarray(labels), 5
  )
  assert matrix.dtype == jnp.int32
  np.testing.assert_array_equal(matrix, expected)
