"""Detection pipelines against recorded ones of mmdetection, and their edges."""

import json
import pathlib

import ml_collections
import numpy as np
import pytest

from acmix_jax.data import decode
from acmix_jax.data.transforms import detection, masks
from tests import fake_data

FIXTURES = pathlib.Path(__file__).parents[2] / 'fixtures' / 'detection'
RECORDED = json.loads((FIXTURES / 'pipeline.json').read_text())
CASES = ('plain', 'flipped', 'downscaled') + tuple(
  f'swin{number}' for number in (0, 1, 2, 3, 4, 7)
)


def config(**fields):
  return ml_collections.ConfigDict(
    {
      'train_scales': ((100, 60),),
      'crop_scales': (),
      'crop_range': (20, 36),
      'flip': 0.5,
      'eval_scale': (100, 60),
      'canvases': ((64, 128), (128, 64)),
      'max_objects': 4,
      'mask_size': 32,
      **fields,
    }
  )


class Recorded:
  """A generator whose draws were recorded, with their bounds."""

  def __init__(self, draws):
    self.draws = list(draws)

  def random(self):
    function, bound, value = self.draws.pop(0)
    assert (function, bound) == ('choice', 2)
    return float(value)  # 0 stood for a flip.

  def integers(self, *bounds):
    function, expected, value = self.draws.pop(0)
    assert list(bounds) == np.ravel(expected).tolist(), function
    return value


def whole(packed, region, height, width):
  """An image of the packed bits, where each is a pixel."""
  bits = np.unpackbits(packed, axis=-1).astype(bool)
  x1, y1, x2, y2 = region.astype(int)
  assert (y2 - y1, x2 - x1) == bits.shape
  mask = np.zeros((height + len(bits), width + len(bits)), bool)
  mask[y1:y2, x1:x2] = bits
  return mask[:height, :width]


@pytest.mark.parametrize('case', CASES)
def test_pipeline_is_that_of_mmdetection(case):
  arrays = np.load(FIXTURES / 'pipeline.npz')
  arrays = {
    key.removeprefix(f'{case}/'): arrays[key]
    for key in arrays.files
    if key.startswith(f'{case}/')
  }
  fields = {'train_scales': (RECORDED[case]['scale'],)}
  if case.startswith('swin'):
    fields['train_scales'] = [(133, short) for short in (48, 54, 61, 70, 80)]
    fields['crop_scales'] = [(10_000, short) for short in (40, 50, 60)]
  transform = detection.train_transform(
    config(**fields, canvases=((160, 160),), max_objects=8, mask_size=160)
  )
  image, boxes = arrays['input/image'][..., ::-1], arrays['input/boxes']
  drawn = np.unpackbits(arrays['input/masks'], axis=-1)
  example = {
    'image': np.ascontiguousarray(image),
    'boxes': boxes,
    'labels': np.arange(len(boxes), dtype=np.int32),
    'masks': drawn[..., : image.shape[1]].astype(bool),
    'image_id': 3,
  }
  recorded = Recorded(RECORDED[case]['draws'])
  moved = transform(example, recorded)
  assert not recorded.draws
  height, width = RECORDED[case]['img_shape'][:2]
  assert moved['size'].tolist() == [height, width]
  np.testing.assert_array_equal(
    moved['image'][:height, :width, ::-1], arrays['before_normalize/image']
  )
  assert not moved['image'][height:].any()
  assert not moved['image'][:, width:].any()
  count = len(arrays['output/boxes'])
  assert moved['valid'].tolist() == [True] * count + [False] * (8 - count)
  for key in ('boxes', 'labels'):
    np.testing.assert_array_equal(
      moved[key][:count], arrays[f'output/{key}'], key
    )
    assert not moved[key][count:].any()
  expected = np.unpackbits(arrays['output/masks'], axis=-1).astype(bool)
  for index in range(count):
    mask = whole(
      moved['masks'][index],
      moved['mask_regions'][index],
      *RECORDED[case]['pad_shape'][:2],
    )
    np.testing.assert_array_equal(mask, expected[index, :, : mask.shape[1]])


def test_sizes_and_factors_are_those_of_mmdetection():
  for row in RECORDED['sizes']:
    height, width, first, second, new_height, new_width = map(int, row[:6])
    side = -(-max(new_height, new_width) // 32) * 32
    transform = detection.eval_transform(
      config(eval_scale=(first, second), canvases=((side, side),))
    )
    example = make_example((height, width), 0)
    moved = transform(example, np.random.default_rng(0))
    assert moved['size'].tolist() == [new_height, new_width]
    assert moved['original_size'].tolist() == [height, width]
    np.testing.assert_array_equal(moved['scale'], np.array(row[8:], np.float32))
    assert moved.keys() == {
      *('image', 'size', 'original_size', 'scale', 'image_id'),
    }


def make_example(size=(48, 64), count=3):
  rng = np.random.default_rng(count)
  corners = np.sort(rng.uniform(0, size[::-1], (count, 2, 2)), axis=1)
  return {
    'image': np.zeros((*size, 3), np.uint8),
    'boxes': corners.reshape(count, 4).astype(np.float32),
    'labels': rng.integers(0, 9, count).astype(np.int32),
    'masks': masks.Masks([None] * count, *size),
    'image_id': 11,
    'canvas': int(size[1] <= size[0]),
  }


def test_every_result_fits_its_canvas():
  transform = detection.train_transform(
    config(
      train_scales=((100, 40), (100, 60)),
      crop_scales=((900, 50), (900, 70)),
      crop_range=(20, 60),
    )
  )
  rng = np.random.default_rng(0)
  uprights = 0
  for index in range(200):
    example = make_example(((48, 70), (70, 48), (50, 50))[index % 3])
    moved = transform(example, rng)
    height, width = moved['size']
    canvas = ((64, 128), (128, 64))[example['canvas']]
    assert moved['image'].shape[:2] == canvas
    assert height <= canvas[0] and width <= canvas[1]
    uprights += example['canvas'] == 0 and height > width
  assert uprights  # Crops that the canvas has to shrink.


def test_largest_objects_are_kept_in_their_order(caplog):
  detection._say_dropped.cache_clear()
  transform = detection.train_transform(config(flip=0.0))
  example = make_example(count=7)
  areas = np.prod(example['boxes'][:, 2:] - example['boxes'][:, :2], axis=1)
  kept = np.sort(np.argsort(areas)[-4:])
  for _ in range(2):
    moved = transform(example, np.random.default_rng(0))
    assert moved['valid'].all()
    np.testing.assert_array_equal(moved['labels'], example['labels'][kept])
  assert caplog.text.count('data.max_objects=4') == 1


def test_boxes_without_area_are_left_out():
  transform = detection.train_transform(config(flip=0.0))
  example = make_example(count=3)
  example['boxes'][0] = (10, 10, 10, 30)
  example['boxes'][2] = (70, 10, 80, 30)  # Right of the image.
  moved = transform(example, np.random.default_rng(0))
  assert moved['valid'].tolist() == [True, False, False, False]
  assert moved['labels'][0] == example['labels'][1]


@pytest.mark.parametrize('count', [0, 1])
def test_shapes_do_not_depend_on_the_objects(count):
  transform = detection.train_transform(config())
  moved = transform(make_example(count=count), np.random.default_rng(0))
  shapes = {key: (value.shape, value.dtype) for key, value in moved.items()}
  assert shapes == {
    'image': ((64, 128, 3), np.uint8),
    'size': ((2,), np.int32),
    'image_id': ((), np.int32),
    'boxes': ((4, 4), np.float32),
    'labels': ((4,), np.int32),
    'valid': ((4,), np.bool_),
    'masks': ((4, 32, 4), np.uint8),
    'mask_regions': ((4, 4), np.float32),
  }
  assert moved['valid'].sum() == count


def test_masks_are_left_out_on_demand():
  transform = detection.train_transform(config(mask_size=0))
  moved = transform(make_example(), np.random.default_rng(0))
  assert not {'masks', 'mask_regions'} & moved.keys()


def test_image_of_another_size_than_its_annotations_is_damaged():
  transform = detection.train_transform(config())
  example = make_example((48, 64))
  example['image'] = fake_data.encode(fake_data.picture(0, (48, 64)))
  with pytest.raises(decode.DecodeError, match='annotations 48 x 64.*EXIF'):
    transform(example, np.random.default_rng(0))
