"""The evaluation pass: what evaluators see, and what comes out."""

import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest

from acmix_jax.train import build, evaluate
from acmix_jax.train import mesh as mesh_lib
from configs import imagenet
from tests.train import pixel_task


def _evaluation(task):
  config = imagenet.resnet('none', stage_sizes=())
  config.eval.batch_size = pixel_task.BATCH_SIZE
  return build.Evaluation(config, mesh_lib.make_mesh(config.mesh), task)


def _evaluate(task):
  variables = task.init(None)
  return evaluate.evaluate(_evaluation(task), variables['params'], {})


def _counted(task):
  batches = task.eval_data(0, 1)
  return [batch['image'][batch['mask']] for batch in batches]


def test_a_sum_on_the_devices_counts_every_example_once():
  task = pixel_task.PixelTask()
  pixels = np.concatenate([images.ravel() for images in _counted(task)])
  right = int(np.sum((pixels > 0) == (pixels + 0.5 > 0)))
  assert 0 < right < pixels.size == (8 + 8 + 3) * 8
  assert _evaluate(task) == {'accuracy': right / pixels.size, 'count': right}


class ByImage(pixel_task.PixelTask):
  """Hands the evaluator a row for each example, with its id."""

  def predict(self, params, model_state, batch):
    bright = params['scale'] * batch['image'] + params['offset'] > 0
    return {
      'id': batch['id'],
      'mask': batch['mask'],
      'bright': bright.sum((1, 2)),
    }

  def evaluator(self):
    return Rows()


class Rows:
  """Sees rows of whole batches, as numpy arrays, in order."""

  def __init__(self):
    self.rows = {}

  def update(self, predictions):
    assert all(isinstance(x, np.ndarray) for x in predictions.values())
    for i, mask, bright in zip(
      *(predictions[name] for name in ('id', 'mask', 'bright')), strict=True
    ):
      if mask:
        self.rows[int(i)] = int(bright)

  def result(self):
    return {f'bright_{i}': count for i, count in self.rows.items()}


def test_rows_of_examples_keep_their_ids():
  task = ByImage()
  ids = [*range(8), *range(100, 108), *range(200, 203)]
  images = [image for batch in _counted(task) for image in batch]
  assert _evaluate(task) == {
    f'bright_{i}': int(np.sum(image + 0.5 > 0))
    for i, image in zip(ids, images, strict=True)
  }


def test_prediction_is_compiled_once_for_each_canvas(caplog):
  caplog.set_level('INFO')
  evaluation = _evaluation(pixel_task.PixelTask())
  for _ in range(2):
    evaluate.evaluate(evaluation, evaluation.task.init(None)['params'], {})
  assert caplog.text.count('Compiling the') == len(pixel_task.CANVASES)


def test_evaluation_looks_at_no_field_of_training():
  config = imagenet.resnet('none', stage_sizes=())
  config.train.batch_size = 7  # There are 8 devices.
  config.optim.name = 'none'
  config.eval.batch_size = 8
  mesh = mesh_lib.make_mesh(config.mesh)
  build.Evaluation(config, mesh, pixel_task.PixelTask())
  with pytest.raises(ValueError, match='train.batch_size=7'):
    build.Training(config, mesh, pixel_task.PixelTask())
  config.eval.batch_size = 7
  with pytest.raises(ValueError, match='eval.batch_size=7'):
    build.Evaluation(config, mesh, pixel_task.PixelTask())


# Evaluates as --mode=eval does; the input stalls after a batch.
STALLING = """
import sys, threading
from acmix_jax.train import build, evaluate, mesh
from configs import imagenet
from tests.train import pixel_task

class Stalling(pixel_task.Batches):
  def __next__(self):
    print('drawing', flush=True)
    threading.Event().wait()

task = pixel_task.PixelTask()
task.eval_data = lambda index, count: Stalling([])
config = imagenet.resnet('none', stage_sizes=())
config.eval.batch_size = pixel_task.BATCH_SIZE
evaluation = build.Evaluation(config, mesh.make_mesh(config.mesh), task)
evaluate.evaluate(evaluation, task.init(None)['params'], {})
"""


@pytest.mark.parametrize('signum', [signal.SIGTERM, signal.SIGINT])
def test_a_stalled_evaluation_ends_at_a_signal(signum):
  process = subprocess.Popen(
    [sys.executable, '-c', STALLING],
    cwd=pathlib.Path(__file__).parents[2],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  try:
    assert process.stdout.readline() == 'drawing\n'
    process.send_signal(signum)
    # Closing the input takes 5 s of these.
    _, errors = process.communicate(timeout=30)
  finally:
    process.kill()
  assert process.returncode == -signum, errors
