"""The benchmarks at toy size: what they report was asked and measured."""

import json
import sys

import numpy as np
import pytest

from benchmarks import detection, harness, operator, pipeline, train_step


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
