"""A detector through data, loop and evaluation, on a tiny COCO."""

import itertools
import json
import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from pycocotools import coco as coco_api
from pycocotools import cocoeval

from acmix_jax.train import loop, metrics_window
from tests import fake_coco
from tests.tasks import tiny_detection
from tests.train import tiny_run

ROOT = pathlib.Path(__file__).parents[2]
IMAGES = 14
DAMAGED = 4


@pytest.fixture(autouse=True)
def _tiny_model(monkeypatch):
  tiny_detection.use_tiny(monkeypatch)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  home = fake_coco.write(tmp_path_factory.mktemp('data'), IMAGES)
  damaged = sorted((home / 'val2017').iterdir())[DAMAGED]
  damaged.write_bytes(damaged.read_bytes()[:500])
  return home


@pytest.fixture(scope='module')
def straight(tmp_path_factory, data):
  """A training that was never stopped, on one device: workdir and result."""
  workdir = tmp_path_factory.mktemp('straight')
  config = tiny_detection.config(data)
  config.eval.results_file = str(workdir / 'results.json')
  with pytest.MonkeyPatch.context() as patch:
    tiny_detection.use_tiny(patch)
    result = loop.run(config, str(workdir))
  return workdir, result


def _values(workdir, key):
  return [line[key] for line in tiny_run.lines(workdir) if key in line]


def _assert_close(workdir, straight):
  """Losses agree to rounding; what is counted agrees exactly."""
  for key in ('train/loss', 'train/loss_mask', 'train/grad_norm'):
    np.testing.assert_allclose(
      _values(workdir, key), _values(straight, key), rtol=1e-4
    )
  assert _values(workdir, 'eval/count') == _values(straight, 'eval/count')
  for key in ('eval/box_ap50', 'eval/mask_ap50'):
    np.testing.assert_allclose(
      _values(workdir, key), _values(straight, key), atol=0.01
    )


def test_it_learns_and_counts_what_can_be_read(straight):
  workdir, result = straight
  assert result['count'] == IMAGES - 1
  losses = _values(workdir, 'train/loss')
  assert losses[-1] < losses[0]
  parts = [_values(workdir, f'train/loss_{x}') for x in ('cls', 'bbox', 'mask')]
  np.testing.assert_allclose(losses, np.sum(parts, axis=0), rtol=1e-5)


def test_the_file_of_results_is_what_the_figures_are_of(straight, data):
  workdir, result = straight
  with open(workdir / 'results.json') as file:
    results = json.load(file)
  assert {*results[0]} == {
    *('image_id', 'category_id', 'bbox', 'score', 'segmentation')
  }
  truth = coco_api.COCO(data / 'annotations' / 'instances_val2017.json')
  evaluation = cocoeval.COCOeval(truth, truth.loadRes(results), 'bbox')
  evaluation.evaluate()
  evaluation.accumulate()
  evaluation.summarize()
  assert 0 < evaluation.stats[1] == pytest.approx(result['box_ap50'], abs=1e-9)
  assert evaluation.stats[8] == pytest.approx(result['box_ar100'], abs=1e-9)


def test_one_update_and_one_prediction_a_canvas_are_compiled(
  tmp_path, caplog, data
):
  caplog.set_level('INFO', 'acmix_jax')
  loop.run(tiny_detection.config(data, num_steps=6), str(tmp_path))
  said = [r.message for r in caplog.records if 'Compiling' in r.message]
  for what in ('update', 'prediction'):
    lines = [line for line in said if what in line]
    assert len(lines) == len(tiny_detection.CANVASES)
    for height, width in tiny_detection.CANVASES:
      shape = f'image (8, {height}, {width}, 3)'
      assert any(shape in line for line in lines), shape


def _crash_and_resume(workdir, patch, data, devices):
  """Crashes in update 7 on some devices; resumes on others."""
  add, updates = metrics_window.Window.add, itertools.count(1)

  def crash(self, *step):
    if next(updates) == 7:
      raise RuntimeError('crash')
    add(self, *step)

  config = tiny_detection.config(data)
  with patch.context() as context, pytest.raises(RuntimeError):
    context.setattr(metrics_window.Window, 'add', crash)
    config.mesh.data = devices[0]
    loop.run(config, str(workdir))
  config.mesh.data = devices[1]
  loop.run(config, str(workdir))


def test_resuming_equals_never_stopping(tmp_path, monkeypatch, data, straight):
  _crash_and_resume(tmp_path, monkeypatch, data, devices=(1, 1))
  assert tiny_run.lines(tmp_path) == tiny_run.lines(straight[0])
  for (path, ours), (_, theirs) in zip(
    tiny_run.state(tmp_path), tiny_run.state(straight[0]), strict=True
  ):
    np.testing.assert_array_equal(ours, theirs, err_msg=str(path))


def test_a_crash_on_8_devices_is_resumed_on_4(
  tmp_path, monkeypatch, data, straight
):
  assert len(jax.devices()) == 8
  _crash_and_resume(tmp_path, monkeypatch, data, devices=(8, 4))
  _assert_close(tmp_path, straight[0])


def test_two_processes_equal_one(tmp_path, data, straight):
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    address = f'127.0.0.1:{free.getsockname()[1]}'
  program = [sys.executable, '-m', 'tests.tasks.tiny_detection']
  processes = [
    subprocess.Popen(
      [*program, str(data), str(tmp_path)],
      cwd=ROOT,
      env=os.environ
      | {
        'XLA_FLAGS': os.environ['XLA_FLAGS'].replace('count=8', 'count=2'),
        'JAX_COORDINATOR_ADDRESS': address,
        'JAX_NUM_PROCESSES': '2',
        'JAX_PROCESS_ID': str(index),
      },
      stderr=subprocess.PIPE,
      text=True,
    )
    for index in range(2)
  ]
  try:
    errors = [process.communicate(timeout=240)[1] for process in processes]
  finally:
    for process in processes:
      process.kill()
  assert [p.returncode for p in processes] == [0, 0], ''.join(errors)
  _assert_close(tmp_path, straight[0])
