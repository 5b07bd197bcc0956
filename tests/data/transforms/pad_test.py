"""Padding to a canvas, against numpy's."""

import numpy as np
import pytest

from acmix_jax.data import transforms
from tests import fake_data

CANVASES = ((16, 24), (24, 16))


def make_example(height, width, canvas):
  rng = np.random.default_rng(0)
  return {
    'image': fake_data.picture(0, (width, height)),
    'label_map': rng.integers(0, 150, (height, width)).astype(np.uint8),
    'masks': rng.integers(0, 2, (3, height, width)).astype(bool),
    'boxes': rng.random((3, 4)).astype(np.float32),
    'canvas': canvas,
    'image_id': np.int32(4),
  }


@pytest.mark.parametrize(
  'size, canvas', [((16, 24), 0), ((11, 23), 0), ((23, 5), 1)]
)
def test_padding_is_at_the_right_and_the_bottom(size, canvas):
  example = make_example(*size, canvas)
  pad = transforms.Pad(CANVASES, color=(7, 8, 9), ignored_label=254)
  padded = pad(example, np.random.default_rng(0))
  sides = [(0, c - s) for c, s in zip(CANVASES[canvas], size, strict=True)]
  for channel, value in enumerate((7, 8, 9)):
    np.testing.assert_array_equal(
      padded['image'][..., channel],
      np.pad(example['image'][..., channel], sides, constant_values=value),
    )
  np.testing.assert_array_equal(
    padded['label_map'],
    np.pad(example['label_map'], sides, constant_values=254),
  )
  np.testing.assert_array_equal(
    padded['masks'], np.pad(example['masks'], [(0, 0), *sides])
  )
  for key in ('image', 'label_map', 'masks'):
    assert padded[key].dtype == example[key].dtype
  np.testing.assert_array_equal(padded['boxes'], example['boxes'])
  np.testing.assert_array_equal(padded['size'], size)
  assert padded.keys() == example.keys() - {'canvas'} | {'size'}


def test_one_canvas_needs_no_number():
  example = make_example(5, 6, 0)
  del example['canvas']
  padded = transforms.Pad(((8, 8),))(example, np.random.default_rng(0))
  assert padded['image'].shape == (8, 8, 3)


def test_image_larger_than_its_canvas_is_an_error():
  example = make_example(16, 24, 1)
  with pytest.raises(ValueError, match='16x24 .* canvas 1 of 24x16'):
    transforms.Pad(CANVASES)(example, np.random.default_rng(0))


def test_array_that_would_not_be_padded_is_an_error():
  example = make_example(16, 24, 0) | {'depth': np.zeros((16, 24))}
  with pytest.raises(ValueError, match="Pad .* 'depth'"):
    transforms.Pad(CANVASES)(example, np.random.default_rng(0))


@pytest.mark.parametrize('canvases', [(), ((0, 3),)])
def test_bad_canvases_are_named(canvases):
  with pytest.raises(ValueError, match='canvases='):
    transforms.Pad(canvases)
