"""Loss, predictions and scores of segmentation, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from acmix_jax.tasks import segmentation
from tests.tasks import tiny_segmentation


@pytest.fixture(autouse=True)
def _tiny_model(monkeypatch):
  tiny_segmentation.use_tiny(monkeypatch)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  return tiny_segmentation.write_ade20k(tmp_path_factory.mktemp('data'))


def _task(data, **fields):
  config = tiny_segmentation.config(data)
  config.update_from_flattened_dict(fields)
  return segmentation.Segmentation(config)


@pytest.mark.parametrize('split', ['train', 'eval'])
def test_batches_have_the_shapes_of_the_task(data, split):
  task = _task(data, **{'data.eval_ratios': (1.0, 1.5)})
  expected = [
    {key: (x.shape, x.dtype) for key, x in shapes.items()}
    for shapes in task.batch_shapes(split)
  ]
  if split == 'train':
    batches = task.train_data(0, 0, 1)
    taken = [next(batches)]
  else:
    batches = task.eval_data(0, 1)
    taken = list(batches)
    assert [{*batch} for batch in taken] == [
      {'image', 'image_1', 'label_map', 'size', 'mask'}
    ] * len(expected)
  batches.close()
  assert [
    {key: (x.shape, x.dtype) for key, x in batch.items()} for batch in taken
  ] == expected


@pytest.mark.parametrize('average', ['all', 'valid'])
def test_loss_is_a_mean_over_pixels(data, average):
  task = _task(data, **{'loss.average': average})
  batches = task.train_data(0, 0, 1)
  batch = next(batches)
  batches.close()
  variables = jax.jit(task.init)(jax.random.key(0))
  state = {'batch_stats': variables['batch_stats']}
  rng = jax.random.key(1)

  mean, std = (
    np.float32(task.config.data.mean),
    np.float32(task.config.data.std),
  )
  images = (np.float32(batch['image']) / 255 - mean[None]) / std[None]
  assert batch['size'].min() < 32
  for image, (height, width) in zip(images, batch['size'], strict=True):
    image[height:] = image[:, width:] = 0
  logits, after = jax.jit(
    lambda images: task.model.apply(
      variables,
      images,
      method='training_logits',
      mutable=['batch_stats'],
      rngs={'dropout': rng},
    )
  )(images)
  labels = batch['label_map']
  known = labels != 255
  expected = {}
  for name, x in logits.items():
    x = jax.image.resize(x, (8, 32, 32, 3), 'bilinear')
    losses = optax.softmax_cross_entropy_with_integer_labels(
      x, np.where(known, labels, 0).astype(int)
    )
    pixels = known.size if average == 'all' else known.sum()
    expected[f'{name}_loss'] = losses[known].sum() / pixels
    if name == 'head':
      right = (x.argmax(-1) == labels)[known].mean()

  batch = jax.tree.map(jnp.asarray, batch)
  loss, (state, metrics) = jax.jit(task.loss)(
    variables['params'], state, batch, rng
  )
  expected['pixel_accuracy'] = right
  chosen = {
    name: pytest.approx(float(x), rel=1e-5) for name, x in expected.items()
  }
  assert {name: float(x) for name, x in metrics.items()} == chosen
  assert float(loss) == pytest.approx(
    float(expected['head_loss'] + 0.4 * expected['auxiliary_loss']), rel=1e-5
  )
  for ours, theirs in zip(
    jax.tree.leaves(state), jax.tree.leaves(after), strict=True
  ):
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


@pytest.mark.parametrize(
  'fields',
  [
    {},
    {'eval.flip': True, 'data.eval_ratios': (1.0, 1.5)},
    {'eval.mode': 'slide', 'eval.window': 24, 'eval.stride': 16},
  ],
  ids=['plain', 'views', 'slide'],
)
def test_predictions_count_the_pixels_of_readable_images(data, fields):
  task = _task(data, **fields)
  variables = jax.jit(task.init)(jax.random.key(0))
  state = {'batch_stats': variables['batch_stats']}
  params = variables['params']
  batches = task.eval_data(0, 1)
  seen = set()
  evaluator = task.evaluator()

  @jax.jit
  def run(batch):
    return (
      task.class_maps(params, state, batch),
      task.predict(params, state, batch),
    )

  count = 0
  for batch in batches:
    maps, predictions = run(jax.tree.map(jnp.asarray, batch))
    expected = np.zeros((3, 3), int)
    for row in np.flatnonzero(batch['mask']):
      height, width = batch['size'][row]
      labels = batch['label_map'][row, :height, :width]
      known = labels != 255
      classes = np.array(maps[row, :height, :width])
      np.add.at(expected, (labels[known], classes[known]), 1)
      seen |= set(classes.ravel().tolist())
    np.testing.assert_array_equal(predictions['confusion'], expected)
    evaluator.update(jax.device_get(predictions))
    count += batch['mask'].sum()
    if fields:  # One canvas is enough.
      break
  batches.close()
  assert len(seen) > 1
  assert evaluator.result()['count'] == count
  assert fields or count == tiny_segmentation.VALIDATION - 1


def _counts(*confusions):
  evaluator = segmentation.Evaluator(('wall', 'sky', 'tree', 'car'))
  for confusion in confusions:
    evaluator.update({'confusion': np.int32(confusion), 'count': np.int32(2)})
  return evaluator


def test_scores_of_the_classes_that_there_are():
  wall = [[2, 1, 0, 0], [0] * 4, [0] * 4, [0] * 4]
  sky = [[0] * 4, [0] * 4, [1, 0, 2, 0], [0] * 4]
  assert _counts(wall, sky).result() == {
    'mean_iou': pytest.approx((2 / 4 + 0 + 2 / 3) / 3),
    'mean_accuracy': pytest.approx((2 / 3 + 2 / 3) / 2),
    'pixel_accuracy': pytest.approx(4 / 6),
    'count': 4,
    'iou/wall': 0.5,
    'iou/sky': 0.0,
    'iou/tree': 0.6667,
  }


def test_counts_beyond_32_bits():
  confusion = np.diag([2**30, 2**30, 0, 0])
  confusion[0, 1] = 1
  evaluator = _counts(*[confusion] * 5)
  assert evaluator.result()['pixel_accuracy'] == 2**31 / (2**31 + 1)


def test_evaluation_of_nothing_is_an_error():
  evaluator = segmentation.Evaluator(('wall',))
  with pytest.raises(ValueError, match='no image .* data.dir'):
    evaluator.result()
  with pytest.raises(ValueError, match='no pixel .* has a label'):
    _counts(np.zeros((4, 4))).result()


@pytest.mark.parametrize(
  'field, value, message',
  [
    ('loss.average', 'al', "loss.average 'al' is unknown. Did you mean 'all'"),
    ('eval.mode', 'slid', "Did you mean 'slide'"),
    ('eval.stride', 0, r'eval.stride=0 is not in 1..eval.window=512'),
    ('eval.stride', 513, r'eval.stride=513 is not in 1..eval.window=512'),
    ('data.std', (1.0, 0.0, 1.0), 'data.std=.* above 0'),
    ('data.crop_size', 0, 'data.crop_size=0'),
    ('data.eval_ratios', (0.0,), r'data.eval_ratios=\(0.0,\)'),
  ],
)
def test_fields_that_cannot_work_are_refused(data, field, value, message):
  with pytest.raises(ValueError, match=message):
    _ = _task(data, **{field: value}).steps_per_epoch


def test_evaluation_looks_at_no_field_of_training(data):
  fields = {'data.crop_size': 0, 'data.flip': 7.0, 'loss.average': 'none'}
  task = _task(data, **fields)
  jax.eval_shape(task.init, jax.random.key(0))
  assert task.batch_shapes('eval')
  with pytest.raises(ValueError, match='data.crop_size=0'):
    task.batch_shapes('train')


def test_other_classes_than_the_model_has_are_refused(data):
  task = _task(data, **{'model.num_classes': 4})
  with pytest.raises(ValueError, match='set model.num_classes=3'):
    _ = task.steps_per_epoch


def test_labels_are_looked_at_before_the_first_step(data, caplog, tmp_path):
  caplog.set_level('INFO', 'acmix_jax')
  _ = _task(data).steps_per_epoch
  assert '13 of 13 label files' in caplog.text
  assert 'Found: 0 to 3' in caplog.text
  home = tiny_segmentation.write_ade20k(tmp_path)
  (home / 'objectInfo150.txt').write_text('1\tone\n2\ttwo\n')
  task = _task(home, **{'model.num_classes': 2})
  with pytest.raises(ValueError, match=r'holds the labels 3, but 2 classes'):
    _ = task.steps_per_epoch


@pytest.mark.parametrize('name', ['digits', 'coco'])
def test_data_without_label_maps_is_named(data, name):
  task = _task(data, **{'data.name': name})
  with pytest.raises(ValueError, match=f"'{name}' has no label maps.* ade20k"):
    _ = task.steps_per_epoch
