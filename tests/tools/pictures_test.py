"""Pictures of predictions, pixel by pixel."""

import io

import numpy as np
import pytest
from PIL import Image

from acmix_jax.tools import pictures

RNG = np.random.default_rng(0)
NAMES = ('sky', 'tree', 'house', 'road')


def _image(height, width):
  return RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)


def _grey(image):
  """The weights of ITU-R 601."""
  return image @ np.array([0.299, 0.587, 0.114])


def test_colors_of_labels_differ():
  colors = pictures.palette().astype(int)
  assert colors.shape == (256, 3)
  assert len(np.unique(colors, axis=0)) == 256
  first = colors[:20]
  distances = np.linalg.norm(first[:, None] - first[None], axis=-1)
  assert distances[~np.eye(20, dtype=bool)].min() > 50


def test_label_images_hold_the_labels_and_show_their_colors():
  label_map = np.array([[0, 1, 149], [255, 3, 2]])
  file = io.BytesIO()
  pictures.label_image(label_map).save(file, 'PNG')
  with Image.open(file) as image:
    assert image.mode == 'P'
    np.testing.assert_array_equal(np.asarray(image), label_map)
    np.testing.assert_array_equal(
      np.asarray(image.convert('RGB')), pictures.palette()[label_map]
    )
  with pytest.raises(ValueError, match='Labels -1 to 255 do not fit'):
    pictures.label_image(label_map - (label_map == 0))


def test_blend_is_the_weighted_mean_inside_the_mask():
  image, mask = _image(5, 7), RNG.random((5, 7)) < 0.5
  color = np.array([10, 200, 30])
  blended = pictures.blend(image, mask, color, 0.25)
  np.testing.assert_array_equal(blended[~mask], image[~mask])
  expected = 0.75 * image[mask] + 0.25 * color
  np.testing.assert_allclose(blended[mask], expected, atol=0.501)


def test_label_maps_are_drawn_in_the_colors_of_their_classes():
  image = _image(300, 260)
  label_map = RNG.integers(0, 4, (300, 260))
  label_map[:10] = 255
  before = image.copy()
  picture = np.asarray(pictures.draw_label_map(image, label_map, NAMES))
  np.testing.assert_array_equal(image, before)
  assert picture.shape[0] == 300 and picture.shape[1] > 260 + 100
  drawn = picture[:, :260]
  np.testing.assert_array_equal(drawn[:10], image[:10])
  colors = pictures.palette()[label_map[10:]]
  expected = 0.45 * _grey(image[10:])[..., None] + 0.55 * colors
  np.testing.assert_allclose(drawn[10:], expected, atol=1.1)


def test_legends_have_the_classes_that_are_there():
  label_map = np.zeros((300, 300), int)
  label_map[:, :75] = 3
  picture = np.asarray(
    pictures.draw_label_map(_image(300, 300), label_map, NAMES)
  )
  legend = picture[:, 300:].reshape(-1, 3)
  colors, counts = np.unique(legend, axis=0, return_counts=True)
  found = {tuple(color): n for color, n in zip(colors, counts, strict=True)}
  present = [tuple(pictures.palette()[label]) for label in range(4)]
  assert found[present[0]] > found[present[3]] > 0
  assert present[1] not in found and present[2] not in found
  np.testing.assert_allclose(
    pictures.label_shares(label_map, 4), [0.75, 0, 0, 0.25]
  )


def test_likeliest_classes_have_bars_of_their_probabilities():
  probabilities = np.array([0.1, 0.0, 0.3, 0.6])
  image = _image(256, 256)
  picture = np.asarray(
    pictures.draw_probabilities(image, probabilities, NAMES, count=2)
  )
  np.testing.assert_array_equal(picture[:, :256], image)
  lengths = []
  for label in range(4):
    color = pictures.palette()[label]
    rows = np.all(picture[:, 256:] == color, axis=-1).sum(axis=1)
    # Above the bar is the square of the colour, which is higher.
    lengths.append(rows[rows > 0][-1] if rows.any() else 0)
  assert lengths[0] == lengths[1] == 0
  assert lengths[3] / lengths[2] == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize(
  'size, factor',
  [
    ((8, 8), 32),
    ((96, 128), 3),
    ((4, 500), 2),
    ((300, 900), 1),
    ((1, 5000), 1),
  ],
)
def test_small_images_are_enlarged_by_a_whole_number(size, factor):
  image = _image(*size)
  picture = np.asarray(
    pictures.draw_objects(image, np.zeros((0, 4)), np.zeros(0, int), NAMES)
  )
  np.testing.assert_array_equal(
    picture, np.kron(image, np.ones((factor, factor, 1)))
  )


def test_many_classes_are_counted_and_long_names_cut():
  names = [f'{"a very long name " * 9}{i}' for i in range(150)]
  label_map = np.arange(150).repeat(2).reshape(10, 30)
  picture = pictures.draw_label_map(_image(10, 30), label_map, names)
  assert max(picture.size) < 2500


def test_boxes_are_outlined_where_they_are():
  image = np.zeros((256, 256, 3), np.uint8)
  boxes = np.array([[20.0, 60.0, 120.0, 200.0], [0.0, 0.0, 256.0, 256.0]])
  labels, scores = np.array([2, 0]), np.array([0.93, 0.5])
  picture = np.asarray(
    pictures.draw_objects(image, boxes[:1], labels[:1], NAMES, scores[:1])
  )
  color = np.all(picture == pictures.palette()[3], axis=-1)
  rows, columns = np.flatnonzero(color.any(1)), np.flatnonzero(color.any(0))
  assert color[60, 20:120].all() and color[199, 20:120].all()
  assert color[60:200, 20].all() and color[60:200, 119].all()
  assert rows[-1] == 199 and columns[0] == 20 and columns[-1] == 119
  assert not picture[70:190, 30:110].any()
  # The name stands above the box, in a plate of its colour.
  assert rows[0] < 60 and not picture[: rows[0]].any()

  picture = np.asarray(
    pictures.draw_objects(image, boxes[1:], labels[1:], NAMES, scores[1:])
  )
  color = np.all(picture == pictures.palette()[1], axis=-1)
  assert color[0].all() and color[-1].all()
  assert color[:, 0].all() and color[:, -1].all()


def test_masks_are_blended_in_the_order_of_the_objects():
  image = _image(256, 256)
  masks = np.zeros((2, 256, 256), bool)
  masks[0, 50:100, 50:100] = True
  masks[1, 80:150, 80:150] = True
  boxes = np.zeros((2, 4))
  picture = np.asarray(
    pictures.draw_objects(image, boxes, np.array([0, 3]), NAMES, masks=masks)
  )
  first, second = pictures.palette()[[1, 4]].astype(float)
  outside = ~masks.any(axis=0)
  outside[:30] = False  # The names of the empty boxes.
  np.testing.assert_array_equal(picture[outside], image[outside])
  once = 0.45 * image[50:80, 50:80] + 0.55 * first
  np.testing.assert_allclose(picture[50:80, 50:80], once, atol=0.51)
  twice = 0.45 * (0.45 * image[80:100, 80:100] + 0.55 * first) + 0.55 * second
  np.testing.assert_allclose(picture[80:100, 80:100], twice, atol=0.75)
