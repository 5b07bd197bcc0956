"""An error of the input or of an evaluation costs no update."""

import numpy as np
import pytest

from acmix_jax.data import pipeline
from acmix_jax.tasks import classification
from acmix_jax.train import evaluate, loop
from tests.train import tiny_run

pytestmark = pytest.mark.usefixtures('tiny_model')


def _fail_in_data(patch, split, before):
  """The data of a split are too damaged before one of its batches."""
  draw = getattr(classification.Classification, f'{split}_data')

  def draw_some(self, *args):
    batches = draw(self, *args)
    for _ in range(before):
      yield next(batches)
    batches.close()
    raise pipeline.TooManyDamagedError(['a/b.png: cut'], 0)

  class Failing:
    damaged, names = 0, ()

    def __init__(self, *args):
      self._batches = draw_some(*args)

    def __iter__(self):
      return self

    def __next__(self):
      return next(self._batches)

    def close(self):
      self._batches.close()

  patch.setattr(
    classification.Classification,
    f'{split}_data',
    lambda *args: Failing(*args),
  )


def _fail_in_evaluator(patch):
  def fail(self):
    raise pipeline.TooManyDamagedError(['evaluator'], 0)

  patch.setattr(classification.Evaluator, 'result', fail)


def _leave_the_best_out(patch):
  original = evaluate.evaluate

  def incomplete(*args):
    metrics = original(*args)
    del metrics['top1']
    return metrics

  patch.setattr(evaluate, 'evaluate', incomplete)


@pytest.mark.parametrize(
  'fail, error, saved',
  [
    (lambda p: _fail_in_data(p, 'train', 7), 'a/b.png', 7),
    (lambda p: _fail_in_data(p, 'eval', 1), 'a/b.png', 5),
    (_fail_in_evaluator, 'evaluator', 5),
    (_leave_the_best_out, 'top1', 5),
  ],
  ids=['input', 'evaluated input', 'evaluator', 'no best metric'],
)
def test_an_error_is_raised_after_the_updates_are_saved(
  tmp_path, monkeypatch, caplog, straight, fail, error, saved
):
  caplog.set_level('INFO', 'acmix_jax')
  with monkeypatch.context() as patch:
    fail(patch)
    with pytest.raises(Exception, match=error):
      loop.run(tiny_run.config(), str(tmp_path))
  assert f'saved step {saved}; run again to resume' in caplog.text
  assert tiny_run.steps(tmp_path)[-1] == saved
  loop.run(tiny_run.config(), str(tmp_path))
  assert tiny_run.lines(tmp_path) == tiny_run.lines(straight)
  for (path, ours), (_, expected) in zip(
    tiny_run.state(tmp_path), tiny_run.state(straight), strict=True
  ):
    np.testing.assert_array_equal(ours, expected, err_msg=str(path))


def test_an_error_before_the_first_update_leaves_no_checkpoint(
  tmp_path, monkeypatch
):
  _fail_in_data(monkeypatch, 'train', 0)
  with pytest.raises(pipeline.TooManyDamagedError):
    loop.run(tiny_run.config(), str(tmp_path))
  assert not tiny_run.steps(tmp_path)
