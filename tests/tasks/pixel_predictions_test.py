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
    for i in range(4):
      kernel = arrays[f'param/backbone.stages.{i}.weight'].transpose(2, 3, 1, 0)
      x = jax.lax.conv_general_dilated(
        x,
        kernel,
        kernel.shape[:2],
        'VALID',
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
      )
      x += arrays[f'param/backbone.stages.{i}.bias'].reshape(1, 1, 1, -1)
      maps.append(x)
    return maps

  shapes = jax.eval_shape(
    lambda images: module.init(
      jax.random.key(0), backbone(images), train=False
    ),
    jnp.zeros((1, 64, 64, 3)),
  )
  variables = segmentation_test.convert(arrays, 'param', shapes)
  apply = jax.jit(
    lambda images: module.apply(variables, backbone(images), train=False)
  )
  return lambda images: apply(images)['logits'], spec, arrays


@pytest.mark.parametrize(
  'case, mirrored, key',
  [
    ('up', False, 'argmax'),
    ('down', False, 'argmax'),
    ('down', True, 'argmax_flip'),
  ],
)
def test_whole_images_have_the_classes_of_the_source(
  source, case, mirrored, key
):
  model, spec, arrays = source
  images = jnp.asarray(seeded.images(spec['seed'], 1, 64, 96))
  windows = Windows.whole(64), Windows.whole(96)
  view = pixel_predictions.make_view(model, images, windows, mirrored)
  if not mirrored:
    official.assert_relative(view.logits, arrays['whole/logits_quarter'])
  size = tuple(spec['whole']['ori_shape'][case])
  classes = pixel_predictions.class_maps([view], jnp.array([size]), (80, 120))
  expected = arrays[f'whole/{case}/{key}']
  np.testing.assert_array_equal(classes[:, : size[0], : size[1]], expected)


def test_windows_have_the_classes_of_the_source(source):
  model, spec, arrays = source
  images = jnp.asarray(seeded.images(spec['seed'] + 1, 1, 96, 144))
  windows = Windows.sliding(96, 64, 43), Windows.sliding(144, 64, 43)
  starts = [[y, x] for y in windows[0].starts for x in windows[1].starts]
  assert starts == spec['slide']['windows_yx']
  view = pixel_predictions.make_view(model, images, windows)
  size = tuple(spec['slide']['ori_shape'])
  classes = pixel_predictions.class_maps([view], jnp.array([size]), size)
  np.testing.assert_array_equal(classes, arrays['slide/argmax'])


def test_each_image_has_its_own_size(bands):
  rng = np.random.default_rng(1)
  images = jnp.asarray(rng.normal(size=(3, 24, 36, 3)), jnp.float32)
  sizes = [(40, 60), (17, 25), (33, 58)]
  maps = classify(lambda images: [whole(images)], images, sizes)
  for image, size, classes in zip(images, sizes, maps, strict=True):
    expected = step_by_step(image, size).argmax(-1)
    np.testing.assert_array_equal(classes[: size[0], : size[1]], expected)


@pytest.mark.parametrize(
  'size, length, stride, starts',
  [
    (96, 64, 43, (0, 32)),
    (144, 64, 43, (0, 43, 80)),
    (64, 64, 43, (0,)),
    (50, 64, 43, (0,)),
    (128, 64, 64, (0, 64)),
  ],
)
def test_the_last_window_ends_with_the_axis(size, length, stride, starts):
  windows = Windows.sliding(size, length, stride)
  assert windows == Windows(starts, min(length, size), size)


@pytest.mark.parametrize('mirrored', [False, True])
def test_overlapping_windows_are_averaged(mirrored):
  rng = np.random.default_rng(2)
  images = jnp.asarray(rng.normal(size=(2, 20, 45, 3)), jnp.float32)
  windows = Windows.sliding(20, 16, 9), Windows.sliding(45, 16, 9)
  sizes = [(40, 60), (31, 47)]
  maps = classify(
    lambda images: [
      pixel_predictions.make_view(model, images, windows, mirrored)
    ],
    images,
    sizes,
  )
  starts = [(y, x) for y in (0, 4) for x in (0, 9, 18, 27, 29)]
  for image, size, classes in zip(images, sizes, maps, strict=True):
    expected = step_by_step(image, size, starts, 16, mirrored).argmax(-1)
    np.testing.assert_array_equal(classes[: size[0], : size[1]], expected)


def test_views_share_their_probabilities():
  rng = np.random.default_rng(3)
  small = jnp.asarray(rng.normal(size=(1, 16, 24, 3)), jnp.float32)
  large = jnp.asarray(rng.normal(size=(1, 32, 44, 3)), jnp.float32)
  size = (27, 59)
  expected = sum(
    step_by_step(images[0], size, mirrored=mirrored)
    for images in (small, large)
    for mirrored in (False, True)
  ).argmax(-1)

  def views(images):
    return [whole(x, mirrored) for x in images for mirrored in (False, True)]

  classes = classify(views, (small, large), [size])[0, : size[0], : size[1]]
  np.testing.assert_array_equal(classes, expected)
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
