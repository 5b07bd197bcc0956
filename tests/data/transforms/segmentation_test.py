"""The segmentation pipelines, stage by stage, against mmsegmentation's."""

import hashlib
import json
import pathlib

import cv2
import ml_collections
import numpy as np
import pytest

from acmix_jax.data import decode, transforms
from acmix_jax.data.transforms import photometric, rescale, segmentation
from tests import fake_data

FIXTURES = pathlib.Path(__file__).parents[2] / 'fixtures' / 'segmentation'
SPEC = json.loads((FIXTURES / 'pipeline.json').read_text())
ARRAYS = np.load(FIXTURES / 'pipeline.npz')
SAMPLES = tuple(SPEC['train'])
STAGES = {
  'resized': transforms.RandomRescale((256, 64), (0.5, 2.0)),
  'cropped': transforms.RandomCrop(64, 0.75),
  'flipped': transforms.RandomFlip(0.5),
  'distorted': transforms.PhotometricDistortion(),
}


def make_config(**fields):
  config = {
    'image_scale': (256, 64),
    'ratio_range': (0.5, 2.0),
    'crop_size': 64,
    'max_category_share': 0.75,
    'flip': 0.5,
    'photometric': True,
    'eval_ratios': (1.0,),
    'eval_multiple': 32,
  }
  return ml_collections.ConfigDict(config | fields)


class Replay:
  """A generator that gives recorded values, if asked as the source did."""

  def __init__(self, draws):
    self._draws = list(draws)

  def _next(self, functions, arguments):
    function, recorded, value = self._draws.pop(0)
    assert function in functions
    assert list(arguments) == recorded
    return value

  def random(self):
    return self._next(('rand', 'random_sample'), ())

  def uniform(self, low, high):
    if self._draws[0][0] == 'random_sample':
      return self.random() * (high - low) + low
    return self._next(('uniform',), (low, high))

  def integers(self, low, high=None):
    if self._draws[0][1][0] == 0:
      low, high = 0, low
    bounds = (low,) if high is None else (low, high)
    return int(self._next(('randint',), bounds))

  def all_used(self):
    return not self._draws


def assert_recorded(array, name):
  """Compares an array with a recorded one, or with its digest."""
  if name in ARRAYS:
    np.testing.assert_array_equal(array, ARRAYS[name])
  else:
    digest = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
    assert digest == SPEC['sha256'][name], name


def load(sample):
  """The image and the label map of ADE20K's classes, 0: ignored."""
  raw = ARRAYS[f'train/{sample}/annotation']
  label_map = np.where(raw == 0, 255, raw - 1).astype(np.uint8)
  return {'image': ARRAYS[f'train/{sample}/image'], 'label_map': label_map}


@pytest.mark.parametrize('sample', SAMPLES)
def test_training_stages_are_those_of_the_source_bit_for_bit(sample):
  draws = SPEC['train'][sample]
  example = load(sample)
  for stage, transform in STAGES.items():
    rng = Replay(draws[stage])
    example = transform(example, rng)
    assert rng.all_used()
    assert_recorded(example['image'], f'train/{sample}/{stage}/image')
    if stage != 'distorted':
      assert_recorded(example['label_map'], f'train/{sample}/{stage}/label')


@pytest.mark.parametrize('sample', SAMPLES)
def test_training_transform_draws_as_the_source_does(sample):
  rng = Replay(sum(SPEC['train'][sample].values(), []))
  transform = segmentation.train_transform(make_config())
  example = transform(load(sample), rng)
  assert rng.all_used()
  assert_recorded(example['label_map'], f'train/{sample}/padded/label')
  assert_recorded(
    example['image'][tuple(map(slice, example['size']))],
    f'train/{sample}/distorted/image',
  )


def test_pixels_beyond_the_size_are_zero_once_normalized():
  rng = Replay(sum(SPEC['train']['small'].values(), []))
  example = segmentation.train_transform(make_config())(load('small'), rng)
  # As the task does on the device; OpenCV rounds otherwise.
  mean = np.array((123.675, 116.28, 103.53), np.float32)
  std = np.array((58.395, 57.12, 57.375), np.float32)
  normalized = (example['image'] - mean) / std
  height, width = example['size']
  normalized[height:] = 0
  normalized[:, width:] = 0
  expected = ARRAYS['train/small/padded/image']
  np.testing.assert_allclose(normalized, expected, atol=5e-7)


@pytest.mark.parametrize('name', SPEC['photometric'])
def test_distortions_alone(name):
  method, value = SPEC['photometric'][name]
  adjust = getattr(photometric, f'adjust_{method}')
  assert_recorded(adjust(ARRAYS['photometric/image'], value), name)


def test_opencv_has_the_hsv_of_the_source():
  hsv = cv2.cvtColor(ARRAYS['photometric/image'], cv2.COLOR_RGB2HSV)
  assert_recorded(hsv, 'photometric/hsv')
  back = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
  assert_recorded(back, 'photometric/hsv_back')


@pytest.mark.parametrize(
  'size', [name for name in ARRAYS if 'x' in name and name.endswith('label')]
)
def test_resizes_to_any_size(size):
  height, width = map(int, size.split('/')[1].split('x'))
  resized = rescale.resize(ARRAYS['interpolation/image'], (height, width))
  assert_recorded(resized, f'interpolation/{height}x{width}/image')


@pytest.mark.parametrize('size, ratio, first, second', SPEC['sizes'])
def test_sizes_of_the_real_recipe(size, ratio, first, second):
  if ratio is None:
    scales = segmentation.EvalScales((2048, 512), multiple=32)
    assert scales.steps(tuple(size)) == [(tuple(first), tuple(second))]
    return
  example = {'image': np.zeros((*size, 3), np.uint8)}
  transform = transforms.RandomRescale((2048, 512), (ratio, ratio))
  placement = transform.place(example, np.random.default_rng(0))
  assert placement.size == tuple(second)
  assert rescale.rescaled_size(size, first) == tuple(second)


def test_thin_images_keep_a_pixel():
  assert rescale.rescaled_size((9000, 1), (1024, 256)) == (1024, 1)


@pytest.mark.parametrize('sample', ['landscape', 'portrait', 'large'])
@pytest.mark.parametrize(
  'multiple, stage', [(1, 'keep_ratio'), (32, 'aligned')]
)
def test_evaluation_images_are_those_of_the_source(sample, multiple, stage):
  image = ARRAYS[f'test/{sample}/image']
  labels = np.arange(image.shape[0] * image.shape[1]) % 150
  example = {
    'image': image,
    'label_map': labels.reshape(image.shape[:2]).astype(np.uint8),
  }
  config = make_config(eval_multiple=multiple)
  _, canvases = segmentation.eval_canvases(config, [image.shape[:2]])
  transform = segmentation.eval_transform(config, canvases)
  result = transform(example, np.random.default_rng(0))
  assert_recorded(result['image'], f'test/{sample}/{stage}/image')
  np.testing.assert_array_equal(result['label_map'], example['label_map'])
  np.testing.assert_array_equal(result['size'], image.shape[:2])


def make_eval(sizes, **fields):
  """The transform of examples of some sizes, their canvases and numbers."""
  config = make_config(**fields)
  numbers, canvases = segmentation.eval_canvases(config, np.array(sizes))
  return segmentation.eval_transform(config, canvases), numbers, canvases


def test_canvases_have_one_input_size_and_close_label_sizes():
  sizes = [(60, 90), (90, 60), (58, 87), (600, 900), (62, 90), (60, 119)]
  _, numbers, canvases = make_eval(sizes)
  assert numbers.tolist() == [0, 3, 0, 1, 0, 2]
  assert canvases == (
    segmentation.Canvas(((64, 96),), (62, 90)),
    segmentation.Canvas(((64, 96),), (600, 900)),
    segmentation.Canvas(((64, 128),), (60, 119)),
    segmentation.Canvas(((96, 64),), (90, 60)),
  )
  _, numbers, canvases = make_eval(sizes, eval_multiple=1)
  assert numbers.tolist() == [1, 4, 1, 2, 0, 3]
  assert [canvas.inputs[0] for canvas in canvases] == [
    (64, 93),
    (64, 96),
    (64, 96),
    (64, 127),
    (96, 64),
  ]


def test_several_scales_are_images_of_their_own():
  example = {
    'image': fake_data.picture(0, (90, 60)),
    'label_map': np.ones((60, 90), np.uint8),
  }
  ratios = (1.0, 0.5, 1.75)
  transform, _, _ = make_eval([(60, 90)], eval_ratios=ratios)
  result = transform(example, np.random.default_rng(0))
  assert segmentation.image_keys(ratios) == ('image', 'image_1', 'image_2')
  for key, ratio in zip(segmentation.image_keys(ratios), ratios, strict=True):
    alone, _, _ = make_eval([(60, 90)], eval_ratios=(ratio,))
    expected = alone(example, np.random.default_rng(0))['image']
    np.testing.assert_array_equal(result[key], expected)
  assert result['image_1'].shape == (32, 64, 3)
  assert result['image_2'].shape == (128, 192, 3)


def test_labels_are_padded_at_their_own_size():
  rng = np.random.default_rng(0)
  label_map = rng.integers(0, 150, (58, 87)).astype(np.uint8)
  transform, numbers, _ = make_eval([(60, 90), (90, 60), (58, 87)])
  example = {
    'image': fake_data.picture(0, (87, 58)),
    'label_map': label_map,
    'canvas': numbers[2],
  }
  result = transform(example, rng)
  assert result.keys() == {'image', 'label_map', 'size'}
  np.testing.assert_array_equal(result['size'], (58, 87))
  expected = np.full((60, 90), 255)
  expected[:58, :87] = label_map
  np.testing.assert_array_equal(result['label_map'], expected)


def test_image_of_another_size_than_its_canvas_is_damage():
  transform, _, _ = make_eval([(60, 90)])
  for size in ((60, 91), (90, 60), (30, 45)):
    example = {
      'image': fake_data.picture(0, size[::-1]),
      'label_map': np.zeros(size, np.uint8),
    }
    if size == (30, 45):
      transform(example, None)  # The same input size, smaller labels.
      continue
    with pytest.raises(decode.DecodeError, match=f'{size[0]} x {size[1]} pix'):
      transform(example, None)


@pytest.mark.parametrize('size, hint', [((60, 90), 'EXIF'), ((60, 91), '91')])
def test_label_map_of_another_size_is_damage(size, hint):
  image = fake_data.encode(fake_data.picture(0, (60, 90)))
  example = {'image': image, 'label_map': np.zeros(size, np.uint8)}
  for transform in (
    segmentation.train_transform(make_config()),
    make_eval([(90, 60)])[0],
  ):
    with pytest.raises(decode.DecodeError, match=f'90 x 60 pixels.*{hint}'):
      transform(example, np.random.default_rng(0))


def test_a_scale_of_which_a_ratio_leaves_no_pixel_is_refused():
  message = r'data.image_scale=\(256, 64\) .* ratio of 0.001'
  with pytest.raises(ValueError, match=message):
    segmentation.train_transform(make_config(ratio_range=(1e-3, 2.0)))
  with pytest.raises(ValueError, match=message):
    segmentation.eval_canvases(make_config(eval_ratios=(1.0, 1e-3)), [(60, 90)])


def test_what_else_an_example_holds_is_left_out():
  example = load('plain') | {
    'boxes': np.zeros((3, 4), np.float32),
    'masks': np.zeros((3, 60, 90), bool),
    'labels': np.zeros(3, np.int32),
  }
  rng = np.random.default_rng(0)
  train = segmentation.train_transform(make_config())(example, rng)
  assert train.keys() == {'image', 'label_map', 'size'}
  evaluated = make_eval([(60, 90)])[0](example, rng)
  assert evaluated.keys() == {'image', 'label_map', 'size'}
