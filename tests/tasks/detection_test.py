"""Losses, detections and figures of detection, and what it refuses."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from acmix_jax.data import sources
from acmix_jax.tasks import detection
from configs import coco
from tests import fake_coco
from tests.tasks import tiny_detection


@pytest.fixture
def _tiny_model(monkeypatch):
  tiny_detection.use_tiny(monkeypatch)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  return fake_coco.write(tmp_path_factory.mktemp('data'))


def _task(data, **fields):
  config = tiny_detection.config(data)
  config.update_from_flattened_dict(fields)
  return detection.Detection(config)


def _first_batch(task):
  batches = task.train_data(0, 0, 1)
  batch = next(batches)
  batches.close()
  return batch


@pytest.mark.usefixtures('_tiny_model')
@pytest.mark.parametrize('split', ['train', 'eval'])
def test_batches_have_the_shapes_of_the_task(data, split):
  task = _task(data)
  expected = [
    {key: (x.shape, x.dtype) for key, x in shapes.items()}
    for shapes in task.batch_shapes(split)
  ]
  if split == 'train':
    batches = task.train_data(0, 0, 1)
    taken = [next(batches) for _ in range(6)]
    objects = [int(n) for batch in taken for n in batch['valid'].sum(axis=1)]
    assert {0, tiny_detection.OBJECTS} == {*objects}
  else:
    batches = task.eval_data(0, 1)
    taken = list(batches)
  batches.close()
  found = [{key: (x.shape, x.dtype) for key, x in b.items()} for b in taken]
  assert all(shapes in found for shapes in expected)
  assert all(shapes in expected for shapes in found)


@pytest.mark.usefixtures('_tiny_model')
def test_the_model_gets_what_the_batch_says(data):
  task = _task(data)
  batch = _first_batch(task)
  variables = jax.jit(task.init)(jax.random.key(0))
  state = {'batch_stats': variables['batch_stats']}
  rng = jax.random.key(1)

  mean, std = (np.float32(task.config.data[x]) for x in ('mean', 'std'))
  images = (np.float32(batch['image']) / 255 - mean[None]) / std[None]
  beyond = 0
  for image, (height, width) in zip(images, batch['size'], strict=True):
    image[height:] = image[:, width:] = 0
    beyond += image.shape[0] * image.shape[1] - height * width
  assert beyond
  truth = tiny_detection.detection.GroundTruth(
    *(jnp.asarray(batch[key]) for key in ('boxes', 'labels', 'valid')),
    masks=np.unpackbits(batch['masks'], axis=-1),
    regions=batch['mask_regions'],
  )
  losses = functools.partial(
    task.model.apply, method='losses', mutable=['batch_stats']
  )
  expected, after = jax.jit(losses)(
    variables,
    jnp.asarray(images),
    jnp.asarray(batch['size']),
    truth,
    rngs={'sampling': jax.random.split(rng)[0]},
  )
  batch = jax.tree.map(jnp.asarray, batch)
  loss, (state, metrics) = jax.jit(task.loss)(
    variables['params'], state, batch, rng
  )
  assert {name: float(x) for name, x in metrics.items()} == {
    name: pytest.approx(float(x), rel=1e-5) for name, x in expected.items()
  }
  assert float(loss) == pytest.approx(
    sum(float(x) for name, x in expected.items() if name != 'acc'), rel=1e-5
  )
  for ours, theirs in zip(
    jax.tree.leaves(state), jax.tree.leaves(dict(after)), strict=True
  ):
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


@pytest.mark.usefixtures('_tiny_model')
def test_boxes_are_in_pixels_of_the_files(data):
  task = _task(data)
  variables = jax.jit(task.init)(jax.random.key(0))
  state = {'batch_stats': variables['batch_stats']}
  apply, predict = jax.jit(task.model.apply), jax.jit(task.predict)
  batches = task.eval_data(0, 1)
  for batch in batches:
    batch = jax.tree.map(jnp.asarray, batch)
    images = task._normalize.padded(batch['image'], batch['size'])
    expected = apply(variables, images, batch['size'])
    found = predict(variables['params'], state, batch)
    ratio = np.float32(batch['original_size']) / batch['size']
    np.testing.assert_allclose(
      found['boxes'],
      expected.boxes * np.tile(ratio[:, ::-1], 2)[:, None],
      rtol=1e-5,
    )
    for name in ('scores', 'labels', 'valid', 'masks'):
      np.testing.assert_allclose(
        found[name], getattr(expected, name), rtol=1e-6
      )
  batches.close()


class Rectangles:
  """Two images of rectangles; see `sources.Objects`."""

  canvases = None
  origin = 'rectangles'
  boxes = (
    ((10, 20, 50, 90), (60, 10, 110, 50)),
    ((5, 5, 75, 45),),
  )
  labels = ((0, 2), (0,))

  def __len__(self):
    return 2

  def __getitem__(self, index):
    boxes = np.array(self.boxes[index], np.float32)
    masks = np.zeros((len(boxes), 100, 120), bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.astype(int), strict=True):
      mask[y1:y2, x1:x2] = True
    return {
      'image': np.zeros((100, 120, 3), np.uint8),
      'boxes': boxes,
      'labels': np.array(self.labels[index], np.int32),
      'masks': masks,
      'name': str(index),
    }


def _found(source):
  """What finds all objects of the two images and of a blank, as arrays."""
  rows = 4
  found = {
    # What is no detection lies in wait.
    'boxes': np.tile(np.float32([[[0, 0, 60, 60]]]), (3, rows, 1)),
    'scores': np.full((3, rows), 0.9, np.float32),
    'labels': np.zeros((3, rows), np.int32),
    'valid': np.zeros((3, rows), bool),
    'masks': np.ones((3, rows, 28, 28), np.float32),
    'image_id': np.array([0, 1, 0], np.int32),
    'original_size': np.tile(np.int32([[100, 120]]), (3, 1)),
    'mask': np.array([True, True, False]),
  }
  for row in range(2):
    example = source[row]
    count = len(example['boxes'])
    found['boxes'][row, :count] = example['boxes']
    found['labels'][row, :count] = example['labels']
    found['valid'][row, :count] = True
  found['valid'][2] = True
  return found


@pytest.mark.parametrize('with_masks', [False, True])
def test_figures_of_perfect_detections(with_masks, tmp_path):
  source = sources.Objects(Rectangles(), ('a', 'b', 'c/d'))
  path = tmp_path / 'results.json'
  evaluator = detection.Evaluator(source, with_masks, str(path))
  found = _found(source)
  if not with_masks:
    del found['masks']
  evaluator.update(found)
  figures = evaluator.result()
  kinds = ('box', 'mask') if with_masks else ('box',)
  assert figures['count'] == 2
  for kind in kinds:
    assert figures[f'{kind}_ap'] == pytest.approx(1)
    assert figures[f'{kind}_ap/a'] == figures[f'{kind}_ap/c/d'] == 1
    # 'a' is in both images: one detection of each finds all.
    assert figures[f'{kind}_ar1'] == 1
    assert f'{kind}_ap/b' not in figures
    assert f'{kind}_aps' not in figures
  assert ('mask_ap' in figures) == with_masks
  written = json.loads(path.read_text())
  assert len(written) == 3
  assert written[0]['bbox'] == pytest.approx([10, 20, 40, 70])
  assert [x['category_id'] for x in written] == [0, 2, 0]


def test_a_box_of_another_class_or_place_is_wrong():
  source = sources.Objects(Rectangles(), ('a', 'b', 'c'))
  evaluator = detection.Evaluator(source, with_masks=False)
  found = _found(source)
  found['labels'][0, 1] = 1
  found['boxes'][1, 0] += 40
  evaluator.update(found)
  figures = evaluator.result()
  # Of the two of class 'a' one is found, first of all or after a wrong one.
  assert figures['box_ap/c'] == 0
  assert figures['box_ap'] == pytest.approx(figures['box_ap/a'] / 2, abs=1e-3)
  assert 0.2 < figures['box_ap/a'] < 0.6


def test_evaluation_of_nothing_is_an_error():
  source = sources.Objects(Rectangles(), ('a', 'b', 'c'))
  evaluator = detection.Evaluator(source, with_masks=True)
  found = _found(source)
  found['mask'][:] = False
  evaluator.update(found)
  with pytest.raises(ValueError, match='no image .* data.eval_images'):
    evaluator.result()


@pytest.mark.usefixtures('_tiny_model')
@pytest.mark.parametrize(
  'field, value, message',
  [
    ('data.mask_size', 0, 'data.mask_size=0, but mask_rcnn learns masks'),
    ('data.mask_size', 9, 'multiple of 8'),
    ('data.canvases', (), 'data.canvases'),
    ('data.max_objects', 0, 'data.max_objects=0'),
    ('data.std', (1.0, 0.0, 1.0), 'data.std=.* above 0'),
    ('model.images_per_group', 3, 'images_per_group=3 does not divide'),
    ('train.accumulate_steps', 8, 'accumulate_steps=8; give a divisor'),
    ('eval.results_file', 'none/results.json', 'there is no folder .*/none'),
    ('model.num_classes', 80, 'set model.num_classes=3'),
    ('data.name', 'scene_objects', r'share one canvas; give one'),
  ],
)
def test_fields_that_cannot_work_are_refused(data, field, value, message):
  with pytest.raises(ValueError, match=message):
    _ = _task(data, **{field: value}).steps_per_epoch


@pytest.mark.usefixtures('_tiny_model')
def test_evaluation_looks_at_no_field_of_training(data):
  task = _task(
    data,
    **{
      'data.train_scales': (),
      'data.max_objects': 0,
      'model.images_per_group': 3,
    },
  )
  jax.eval_shape(task.init, jax.random.key(0))
  assert task.batch_shapes('eval')
  with pytest.raises(ValueError, match='data.train_scales'):
    task.batch_shapes('train')


@pytest.mark.usefixtures('_tiny_model')
@pytest.mark.parametrize('name', ['digits', 'segmentation_folder', 'scenes'])
def test_data_without_boxes_is_named(data, name):
  task = _task(data, **{'data.name': name})
  with pytest.raises(ValueError, match=f"'{name}' has no boxes.* coco"):
    _ = task.steps_per_epoch


def test_masks_that_nobody_learns_are_refused():
  config = coco.retinanet('resnet26')
  config.data.mask_size = 16
  with pytest.raises(ValueError, match='retinanet learns boxes alone'):
    detection.Detection(config)
