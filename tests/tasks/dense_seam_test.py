"""A dense task through pipeline, loop and evaluation, on two canvases."""

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

from acmix_jax.tasks import task as task_lib
from acmix_jax.train import loop, metrics_window
from tests.tasks import toy_dense

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
  monkeypatch.setitem(task_lib._TASKS, 'toy_dense', toy_dense.ToyDense)


def _lines(workdir):
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  lines = [json.loads(line) for line in lines]
  for line in lines:
    line.pop('train/images_per_second', None)
  return lines


def _values(workdir, key):
  return [line[key] for line in _lines(workdir) if key in line]


def _run(workdir, patch, devices=1):
  patch.setitem(task_lib._TASKS, 'toy_dense', toy_dense.ToyDense)
  config = toy_dense.get_config()
  config.mesh.data = devices
  return loop.run(config, str(workdir))


@pytest.fixture(scope='module')
def straight(tmp_path_factory):
  """A training that was never stopped, on one device."""
  workdir = tmp_path_factory.mktemp('straight')
  with pytest.MonkeyPatch.context() as patch:
    result = _run(workdir, patch)
  return workdir, result


@pytest.mark.parametrize('split', ['train', 'eval'])
@pytest.mark.parametrize('process_count', [1, 2])
def test_batches_have_the_shapes_of_the_task(split, process_count):
  task = toy_dense.ToyDense(toy_dense.get_config())
  expected = [
    {key: (x.shape, x.dtype) for key, x in shapes.items()}
    for shapes in task.batch_shapes(split)
  ]
  canvases = []
  for index in range(process_count):
    if split == 'train':
      batches = task.train_data(0, index, process_count)
      taken = [next(batches) for _ in range(task.steps_per_epoch)]
    else:
      batches = task.eval_data(index, process_count)
      taken = list(batches)
    batches.close()
    canvases.append(
      [
        expected.index(
          {
            key: ((len(x) * process_count, *x.shape[1:]), x.dtype)
            for key, x in batch.items()
          }
        )
        for batch in taken
      ]
    )
  assert set(canvases[0]) == {0, 1}
  assert all(other == canvases[0] for other in canvases)


def test_flipped_and_padded_examples_are_those_of_the_source():
  task = toy_dense.ToyDense(toy_dense.get_config())
  batches = task.train_data(0, 0, 1)
  flips = set()
  for _ in range(task.steps_per_epoch):
    batch = next(batches)
    for row, image_id in enumerate(batch['image_id']):
      example = task.sources['train'][image_id - 1000]
      height, width = batch['size'][row]
      assert (height, width) == example['label_map'].shape
      labels = batch['label_map'][row]
      assert (labels[height:] == toy_dense.IGNORED).all()
      assert (labels[:, width:] == toy_dense.IGNORED).all()
      labels, image = labels[:height, :width], batch['image'][row]
      left, top, right, bottom = batch['boxes'][row, 0].astype(int)
      flipped = not np.array_equal(labels, example['label_map'])
      flips.add(flipped)
      if flipped:
        labels = labels[:, ::-1]
        left, right = width - right, width - left
        image = image[:, :width][:, ::-1]
      np.testing.assert_array_equal(labels, example['label_map'])
      np.testing.assert_array_equal(
        image[:height, :width], example['image'], err_msg=str(image_id)
      )
      np.testing.assert_array_equal(
        (left, top, right, bottom), example['boxes'][0]
      )
  batches.close()
  assert flips == {False, True}
  assert batches.damaged == 1


def test_evaluation_counts_what_can_be_read_once(straight):
  workdir, result = straight
  source = toy_dense.Rectangles(21, seed=1)
  readable = np.delete(np.arange(21), (3, 8))
  assert result['count'] == len(readable)
  assert result['pixels'] == source.sizes[readable].prod(axis=1).sum()
  lines = [line for line in _lines(workdir) if 'eval/count' in line]
  assert [line['step'] for line in lines] == [5, 10, 13]
  assert lines[-1]['eval/mean_iou'] == result['mean_iou']
  assert result['mean_iou'] > lines[0]['eval/mean_iou']


def test_update_is_traced_once_for_each_canvas(tmp_path, monkeypatch):
  traced = []
  loss = toy_dense.ToyDense.loss

  def counting(self, params, model_state, batch, rng):
    traced.append(batch['image'].shape)
    return loss(self, params, model_state, batch, rng)

  monkeypatch.setattr(toy_dense.ToyDense, 'loss', counting)
  _run(tmp_path, monkeypatch)
  assert sorted(traced) == [(8, *canvas, 3) for canvas in toy_dense.CANVASES]


def test_resuming_after_a_crash_equals_never_stopping(
  tmp_path, monkeypatch, straight
):
  add, updates = metrics_window.Window.add, itertools.count(1)

  def crash(self, *step):
    if next(updates) == 7:
      raise RuntimeError('crash')
    add(self, *step)

  with monkeypatch.context() as patch:
    patch.setattr(metrics_window.Window, 'add', crash)
    with pytest.raises(RuntimeError, match='crash'):
      _run(tmp_path, patch)
  _run(tmp_path, monkeypatch)
  assert _lines(tmp_path) == _lines(straight[0])


def test_eight_devices_equal_one(tmp_path, monkeypatch, straight):
  assert len(jax.devices()) == 8
  result = _run(tmp_path, monkeypatch, devices=8)
  for key in ('train/loss', 'train/box_loss', 'eval/box_error'):
    np.testing.assert_allclose(
      _values(tmp_path, key), _values(straight[0], key), rtol=1e-4
    )
  assert result['count'] == straight[1]['count']
  assert result['pixels'] == straight[1]['pixels']


def test_two_processes_equal_one(tmp_path, straight):
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    address = f'127.0.0.1:{free.getsockname()[1]}'
  processes = [
    subprocess.Popen(
      [sys.executable, '-m', 'tests.tasks.toy_dense', str(tmp_path)],
      cwd=ROOT,
      env=os.environ
      | {
        'XLA_FLAGS': '--xla_force_host_platform_device_count=2',
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
  for key in ('train/loss', 'eval/box_error'):
    np.testing.assert_allclose(
      _values(tmp_path, key), _values(straight[0], key), rtol=1e-4
    )
  for key in ('eval/count', 'eval/pixels'):
    assert _values(tmp_path, key) == _values(straight[0], key)
