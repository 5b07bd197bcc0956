"""Plots of a training."""

import json
import math

import cv2
import numpy as np
import pytest

from acmix_jax.tools import plots

_LAYERS = ['stage1_2/operator', 'stage1_10/operator', 'stage2_0/operator']


@pytest.fixture
def workdir(tmp_path):
  lines = []
  for step in (10, 20):
    line = {
      'step': step,
      'train/loss': 3.0 - step / 10 if step < 20 else None,
      'train/top1': step / 100,
      'train/learning_rate': 0.1 / step,
    }
    for depth, layer in enumerate(_LAYERS):
      line[f'params/{layer}/alpha'] = 0.5 + depth
      line[f'params/{layer}/beta'] = -step / 40
    lines.append(line)
  lines.append({'step': 20, 'eval/loss': 1.5, 'eval/top1': 0.25})
  text = '\n'.join(map(json.dumps, lines))
  (tmp_path / 'metrics.jsonl').write_text(text + '\n{"step": 3')
  return tmp_path


def test_series_are_the_metrics_written(workdir):
  series = plots.read_series(workdir)
  assert series['train/top1'] == [(10, 0.1), (20, 0.2)]
  assert series['eval/top1'] == [(20, 0.25)]
  (_, first), (_, last) = series['train/loss']
  assert first == 2 and math.isnan(last)


def test_path_weights_are_in_the_order_of_depth(workdir):
  layers, steps, weights = plots.path_weights(plots.read_series(workdir))
  assert layers == _LAYERS
  assert steps == [10, 20]
  alpha = np.array([[0.5, 0.5], [1.5, 1.5], [2.5, 2.5]])
  beta = np.array([[0.25, 0.5]] * 3)
  np.testing.assert_allclose(weights['|alpha|'], alpha)
  np.testing.assert_allclose(weights['|beta|'], beta)
  np.testing.assert_allclose(weights['|alpha / beta|'], alpha / beta)


def test_figures_show_the_series(workdir, tmp_path):
  out = tmp_path / 'plots'
  assert not plots.main([str(workdir), f'--out={out}'])
  assert sorted(path.name for path in out.iterdir()) == [
    'curves.png',
    'path_weights.png',
  ]
  for path in out.iterdir():
    image = cv2.imread(str(path))
    assert min(image.shape[:2]) > 400
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 50


@pytest.fixture
def precision(workdir):
  """What a detector of boxes left: no object of 'dog', 'cat' is the best."""
  values = np.full((10, 101, 3), -1.0)
  values[:, :, 0] = np.linspace(1, 0.1, 10)[:, None]
  values[:, :, 2] = np.linspace(0.5, 0, 101)
  names = np.array(['cat', 'dog', 'bird'])
  arrays = {'class_names': names, 'box_precision': values}
  np.savez(workdir / 'evaluation.npz', **arrays)
  return plots.read_precision(workdir)


def test_precision_of_a_detector_is_drawn(workdir, tmp_path, precision):
  files = plots.draw(workdir, tmp_path / 'plots')
  assert [path.name for path in files][2:] == [
    'precision_recall.png',
    'class_precision.png',
  ]
  overlaps, classes = plots.draw_precision(*precision).axes
  assert [text.get_text() for text in classes.get_legend().get_texts()] == [
    'cat',
    'bird',
  ]
  recalls, drawn = classes.lines[1].get_data()
  np.testing.assert_allclose(recalls, np.arange(101) / 100, atol=1e-12)
  np.testing.assert_allclose(drawn, np.linspace(0.5, 0, 101))
  # The mean of 'cat', 0.1, and 'bird', 0.25 of all recalls.
  *_, last = overlaps.lines
  assert last.get_label() == '0.95: 17.5'
  np.testing.assert_allclose(
    last.get_ydata(), (0.1 + np.linspace(0.5, 0, 101)) / 2
  )


def test_classes_are_in_the_order_of_their_precision(precision):
  (axis,) = plots.draw_classes(*precision).axes
  assert [text.get_text() for text in axis.get_yticklabels()] == ['bird', 'cat']
  lengths = [bar.get_width() for bar in axis.patches]
  np.testing.assert_allclose(lengths, [25, 55])


def test_lines_hold_the_metrics(workdir):
  series = plots.read_series(workdir)
  figures = plots.figures(str(workdir))
  loss, accuracy, rate = figures['curves'].axes
  lines = {
    line.get_label(): list(zip(*line.get_data(), strict=True))
    for axis in (loss, accuracy, rate)
    for line in axis.lines
  }
  assert lines.pop('train/loss')[0] == (10, 2)
  assert lines == {
    name: series[name]
    for name in ('eval/loss', 'train/top1', 'eval/top1', 'train/learning_rate')
  }
  over_depth = figures['path_weights'].axes[0].lines[0]
  np.testing.assert_allclose(over_depth.get_ydata(), [0.5, 1.5, 2.5])


def test_without_acmix_only_curves_are_drawn(tmp_path):
  line = {'step': 1, 'train/loss': 1.0, 'params/operator/alpha_like': 2.0}
  (tmp_path / 'metrics.jsonl').write_text(json.dumps(line))
  assert plots.draw(tmp_path, tmp_path) == [tmp_path / 'curves.png']


def test_nothing_to_draw_is_answered(tmp_path, capsys):
  assert plots.main([str(tmp_path)]) == 2
  assert 'metrics.jsonl' in capsys.readouterr().err
  (tmp_path / 'metrics.jsonl').touch()
  assert plots.main([str(tmp_path)]) == 2
  assert 'holds no metrics yet' in capsys.readouterr().err
