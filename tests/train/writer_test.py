"""What a training writes and prints."""

import json
import sys

import pytest

from acmix_jax.train import writer
from tests.train import tiny_run


@pytest.mark.parametrize(
  'term, rewritten',
  [('xterm-256color', True), ('dumb', False), (None, False)],
)
def test_a_line_is_rewritten_only_where_the_terminal_can(
  tmp_path, monkeypatch, capsys, caplog, term, rewritten
):
  caplog.set_level('INFO', 'acmix_jax')
  if term is None:
    monkeypatch.delenv('TERM', raising=False)
  else:
    monkeypatch.setenv('TERM', term)
  monkeypatch.setattr(sys.stderr, 'isatty', lambda: True, raising=False)
  log = writer.TrainingLog(tmp_path, tiny_run.config(), 0, 10)
  log.train(1, {'loss': 2.0}, 0.1, {}, 0)
  log.close()
  assert ('\x1b' in capsys.readouterr().err) == rewritten
  assert ('step 1/10' in caplog.text) == (not rewritten)


def test_lines_are_valid_json():
  line = writer.json_line(5, {'a': float('nan'), 'b': -float('inf'), 'c': 0.5})

  def refuse(constant):
    raise AssertionError(constant)

  assert json.loads(line, parse_constant=refuse) == {
    'step': 5,
    'a': None,
    'b': None,
    'c': 0.5,
  }


def test_scores_of_classes_go_to_the_files_alone(tmp_path, caplog):
  caplog.set_level('INFO', 'acmix_jax')
  log = writer.TrainingLog(tmp_path, tiny_run.config(), 0, 10)
  log.eval(5, {'mean_iou': 0.5, 'count': 7, 'iou/wall': 0.25})
  log.close()
  assert 'step 5  eval/mean_iou 0.5  eval/count 7' in caplog.text
  assert 'wall' not in caplog.text
  (line,) = tiny_run.lines(tmp_path)
  assert line['eval/iou/wall'] == 0.25
