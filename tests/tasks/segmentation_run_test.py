"""A segmenter through data, loop and evaluation, on a tiny ADE20K."""

import itertools
import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from acmix_jax.train import loop, metrics_window
from tests.tasks import tiny_segmentation
from tests.train import tiny_run

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _tiny_model(monkeypatch):
  tiny_segmentation.use_tiny(monkeypatch)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  return tiny_segmentation.write_ade20k(tmp_path_factory.mktemp('data'))


@pytest.fixture(scope='module')
def straight(tmp_path_factory, data):
  """A training that was never stopped, on one device: workdir and result."""
  workdir = tmp_path_factory.mktemp('straight')
  with pytest.MonkeyPatch.context() as patch:
    tiny_segmentation.use_tiny(patch)
    result = loop.run(tiny_segmentation.config(data), str(workdir))
  return workdir, result


def _values(workdir, key):
  return [line[key] for line in tiny_run.lines(workdir) if key in line]


def _assert_close(workdir, straight):
  """Losses agree to rounding; what is counted agrees exactly."""
  for key in ('train/loss', 'train/auxiliary_loss', 'train/grad_norm'):
    np.testing.assert_allclose(
      _values(workdir, key), _values(straight, key), rtol=1e-4
    )
  assert _values(workdir, 'eval/count') == _values(straight, 'eval/count')
  np.testing.assert_allclose(
    _values(workdir, 'eval/mean_iou'),
    _values(straight, 'eval/mean_iou'),
    atol=0.01,
  )


def test_it_learns_and_counts_what_can_be_read(straight):
  workdir, result = straight
  scores = _values(workdir, 'eval/mean_iou')
  assert scores[0] < scores[-1] == result['mean_iou'] > 0.6
  assert result['count'] == tiny_segmentation.VALIDATION - 1
  assert [*result][4:] == ['iou/wall', 'iou/sky', 'iou/tree']
  losses = _values(workdir, 'train/loss')
  assert losses[-1] < losses[0]
  np.testing.assert_allclose(
    losses,
    np.add(
      _values(workdir, 'train/head_loss'),
      0.4 * np.array(_values(workdir, 'train/auxiliary_loss')),
    ),
    rtol=1e-6,
  )


def test_one_update_and_one_prediction_a_canvas_are_compiled(
  tmp_path, caplog, data
):
  caplog.set_level('INFO', 'acmix_jax')
  loop.run(tiny_segmentation.config(data, num_steps=6), str(tmp_path))
  said = [r.message for r in caplog.records if 'Compiling' in r.message]
  updates = [line for line in said if 'update' in line]
  predictions = [line for line in said if 'prediction' in line]
  assert len(updates) == 1 and 'image (8, 32, 32, 3)' in updates[0]
  canvases = [(32, 48), (48, 32), (32, 64)]
  assert len(predictions) == len(set(predictions)) == len(canvases)
  for height, width in canvases:
    shape = f'image (8, {height}, {width}, 3)'
    assert any(shape in line for line in predictions), shape
  assert 'on 3 canvases' in caplog.text


def _crash_and_resume(workdir, patch, data, devices):
  """Crashes in update 7 on some devices; resumes on others."""
  add, updates = metrics_window.Window.add, itertools.count(1)

  def crash(self, *step):
    if next(updates) == 7:
      raise RuntimeError('crash')
    add(self, *step)

  config = tiny_segmentation.config(data)
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


def test_scores_do_not_depend_on_the_devices(data, straight):
  config = tiny_segmentation.config(data)
  single = loop.run(config, str(straight[0]), 'eval')
  assert single['count'] == straight[1]['count']
  config.mesh.data = 8
  assert loop.run(config, str(straight[0]), 'eval') == single


def test_two_processes_equal_one(tmp_path, data, straight):
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    address = f'127.0.0.1:{free.getsockname()[1]}'
  program = [sys.executable, '-m', 'tests.tasks.tiny_segmentation']
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
    errors = [process.communicate(timeout=120)[1] for process in processes]
  finally:
    for process in processes:
      process.kill()
  assert [p.returncode for p in processes] == [0, 0], ''.join(errors)
  _assert_close(tmp_path, straight[0])
