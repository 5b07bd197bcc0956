"""The benchmarks at toy size: what they report was asked and measured."""

import argparse
import json
import sys

import numpy as np
import pytest

from acmix_jax import tasks
from benchmarks import detection, harness, operator, pipeline, train_step

# ml_collections loads the file of a config so.
_LOADS_CONFIG = pytest.mark.filterwarnings('ignore:.*load_module')


def _record(main, path, *options):
  assert main([f'--json={path}', '--turn_seconds=0', *options]) == 0
  return json.loads(path.read_text())


def test_contestants_take_turns_and_repeat_short_work():
  order, calls = [], {}

  def contestant(name, seconds):
    def run(count):
      order.append(name)
      calls[name] = count
      return count * seconds

    return run

  work = {'fast': contestant('fast', 0.5), 'slow': contestant('slow', 2.0)}
  seconds = harness.take_turns(work, rounds=2, turn_seconds=1.0)
  assert seconds == {'fast': [0.5, 0.5], 'slow': [2.0, 2.0]}
  assert calls == {'fast': 2, 'slow': 1}
  assert order[-4:] == ['fast', 'slow', 'fast', 'slow']


def test_ratio_is_the_median_of_the_rounds():
  assert harness.ratio([2.0, 30.0, 4.0], [1.0, 3.0, 1.0]) == 4.0
  assert harness.ratio(None, [1.0]) is None


def test_table_keeps_three_digits_and_leaves_gaps():
  table = harness.table(('name', 'ms'), [('a', 1234.5), ('bc', None)])
  assert table.splitlines() == [
    '| name | ms    |',
    '| ---- | ----- |',
    '| a    | 1,234 |',
    '| bc   |       |',
  ]


@pytest.mark.parametrize(
  ('python', 'reason'),
  [('/no/python', 'No such file'), (sys.executable, 'no ResNet|status 1')],
)
def test_missing_peer_is_reported(python, reason):
  request = {'work': 'layer', 'acmix': '/no/code', 'dtype': 'float32'}
  with pytest.raises(harness.UnavailableError, match=reason):
    harness.Peer(python, request)


def test_operator_measures_every_implementation(tmp_path):
  path = tmp_path / 'operator.json'
  record = _record(
    *(operator.main, path, '--maps=4x8', '--batch=1', '--rounds=2'),
    '--torch_python=/no/python',
  )
  rows = {row['contestant']: row for row in record['rows']}
  assert set(rows) >= {
    'ours, auto',
    'ours, tiles',
    'ours, patches',
    'ours, XLA alone',
  }
  assert 'ours, pallas' not in rows
  for row in rows.values():
    assert len(row['seconds']) == 2 and min(row['seconds']) > 0
    assert row['PyTorch / this'] is None and row['temporary MiB'] > 0
  assert any('PyTorch, eager: not available' in x for x in record['notes'])


def test_detection_measures_every_work(tmp_path):
  record = _record(
    *(detection.main, tmp_path / 'detection.json', '--rounds=2'),
    *('--boxes=30', '--rois=3', '--size=64,96', '--channels=2'),
    '--torch_python=/no/python',
  )
  works = [(row['work'], row['contestant']) for row in record['rows']]
  assert works == [
    (work, 'ours') for work in ('nms', 'roi_align', 'roi_align_gradient')
  ]
  for row in record['rows']:
    assert len(row['seconds']) == 2 and min(row['seconds']) > 0


def test_boxes_of_the_benchmark_lie_in_the_image_and_crowd():
  x1, y1, x2, y2 = detection.make_boxes(500, 64, 96).T
  assert min(x1) >= 0 and min(y1) >= 0 and max(x2) <= 96 and max(y2) <= 64
  assert min(x2 - x1) > 0 and min(y2 - y1) > 0


def test_update_trains_the_model_it_names(tmp_path, monkeypatch):
  make_config = train_step.make_config

  def make_small_config(name, args):
    config = make_config(name, args)
    small = {'stage_sizes': (1,), 'width': 8, 'num_heads': 2, 'stem': 'small'}
    config.model.update(small | {'num_classes': 2})
    return config

  monkeypatch.setattr(train_step, 'make_config', make_small_config)
  record = _record(
    *(train_step.main, tmp_path / 'train_step.json', '--rounds=1'),
    *('--models=resnet26_acmix', '--image_size=8', '--batch=2'),
    '--torch_python=/no/python',
  )
  mixed, plain = record['rows']
  assert mixed['contestant'] == 'ours, resnet26_acmix'
  assert plain['contestant'] == 'ours, resnet26'
  assert mixed['this / baseline'] == pytest.approx(
    mixed['seconds'][0] / plain['seconds'][0]
  )
  assert mixed['compile s'] > 0


@pytest.mark.parametrize('name', ['retinanet:resnet50', 'mask_rcnn:resnet50'])
def test_detectors_and_their_peers_get_the_same_objects(name):
  args = argparse.Namespace(
    dtype='float32',
    batch=2,
    image_size=[64, 96],
    **dict.fromkeys(('acmix', 'san', 'pvt', 'swin_segmentation'), ''),
  )
  config = train_step.make_config(name, args)
  task = tasks.make_task(config)
  batch = train_step._noise(task)
  (shapes,) = task.batch_shapes('train')
  assert {k: (x.shape, x.dtype) for k, x in batch.items()} == {
    k: (x.shape, x.dtype) for k, x in shapes.items()
  }
  assert batch['size'].tolist() == [[64, 96]] * 2
  request = train_step._request(config, args)
  assert request['image_size'] == [64, 96]
  for row, objects in enumerate(request['objects']):
    boxes = batch['boxes'][row, batch['valid'][row]]
    np.testing.assert_allclose(boxes, objects, rtol=1e-6)
    assert len(boxes) == 7
    if 'masks' in batch:
      regions = batch['mask_regions'][row, batch['valid'][row]]
      np.testing.assert_array_equal(regions, boxes)
      assert np.all(batch['masks'] == 255)


@_LOADS_CONFIG
@pytest.mark.parametrize(
  'config', ['ade20k_upernet.py:swin_tiny', 'coco_mask_rcnn.py:swin_tiny']
)
def test_pipeline_makes_the_batches_of_dense_models(config, tmp_path):
  record = _record(
    *(pipeline.main, tmp_path / 'pipeline.json', '--rounds=1'),
    *('--images=3', '--threads=1', '--turn_seconds=0.01'),
    f'--config=configs/{config}',
  )
  (row,) = record['rows']
  assert row['images/s'] > 0 and row['mean kB'] > 20


@_LOADS_CONFIG
def test_pipeline_reads_the_files_it_describes(tmp_path):
  record = _record(
    *(pipeline.main, tmp_path / 'pipeline.json', '--rounds=1'),
    *('--images=4', '--threads=1', '--turn_seconds=0.01'),
  )
  stored, copy = record['rows']
  assert stored['mean kB'] > copy['mean kB'] > 0
  assert min(stored['images/s'], copy['images/s']) > 0


def test_made_files_have_the_sizes_of_imagenet():
  widths, heights = zip(*pipeline._SIZES, strict=True)
  assert (sum(widths) / 10, sum(heights) / 10) == (472, 397)


def test_made_pairs_are_like_those_of_ade20k():
  source = pipeline.make_pairs(20)
  lengths = [(len(x.image), len(x.label)) for x in map(source.read, range(20))]
  assert np.mean(lengths, axis=0) == pytest.approx((40e3, 3e3), rel=0.5)
  for i in range(10):
    label_map = source[i]['label_map']
    assert label_map.shape == pipeline._PAIR_SIZES[i][::-1]
    assert tuple(source.sizes[i]) == label_map.shape
    assert 20 < len(np.unique(label_map)) < 150


def test_made_objects_are_like_those_of_coco():
  source = pipeline.make_objects(10)
  lengths = [len(source[i]['image']) for i in range(10)]
  assert np.mean(lengths) == pytest.approx(155e3, rel=0.2)
  height, width = source.annotations.sizes[0]
  assert (width, height) == pipeline._OBJECT_SIZES[0]
  boxes = source[0]['boxes']
  assert len(boxes) == 7 and boxes.min() >= 0
  assert np.all(boxes[:, 2:] <= (width, height))
