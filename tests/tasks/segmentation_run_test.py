"""A segmenter through data, loop and evaluation, on a tiny ADE20K."""

import jax
import numpy as np
import pytest

from acmix_jax.train import loop
from tests.tasks import dense_run, tiny_segmentation


@pytest.fixture(autouse=True)
def _tiny_model(monkeypatch):
  tiny_segmentation.use_tiny(monkeypatch)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  return tiny_segmentation.write_ade20k(tmp_path_factory.mktemp('data'))


@pytest.fixture(scope='module')
def straight(tmp_path_factory, data):
  """A training that was never stopped, on one device."""
  workdir = tmp_path_factory.mktemp('straight')
  with pytest.MonkeyPatch.context() as patch:
    tiny_segmentation.use_tiny(patch)
    return dense_run.run_straight(tiny_segmentation.config(data), workdir)


def _assert_close(workdir, straight):
  """Losses agree to rounding; what is counted agrees exactly."""
  for key in ('train/loss', 'train/auxiliary_loss', 'train/grad_norm'):
    np.testing.assert_allclose(
      dense_run.values(workdir, key), dense_run.values(straight, key), rtol=1e-4
    )
  assert dense_run.values(workdir, 'eval/count') == dense_run.values(
    straight, 'eval/count'
  )
  np.testing.assert_allclose(
    dense_run.values(workdir, 'eval/mean_iou'),
    dense_run.values(straight, 'eval/mean_iou'),
    atol=0.01,
  )


def test_it_learns_and_counts_what_can_be_read(straight):
  workdir, result, _ = straight
  scores = dense_run.values(workdir, 'eval/mean_iou')
  assert scores[0] < scores[-1] == result['mean_iou'] > 0.6
  assert result['count'] == tiny_segmentation.VALIDATION - 1
  assert [*result][4:] == ['iou/wall', 'iou/sky', 'iou/tree']
  losses = dense_run.values(workdir, 'train/loss')
  assert losses[-1] < losses[0]
  np.testing.assert_allclose(
    losses,
    np.add(
      dense_run.values(workdir, 'train/head_loss'),
      0.4 * np.array(dense_run.values(workdir, 'train/auxiliary_loss')),
    ),
    rtol=1e-6,
  )


def test_one_update_and_one_prediction_a_canvas_are_compiled(straight):
  said = [text for text in straight.messages if 'Compiling' in text]
  updates = [line for line in said if 'update' in line]
  predictions = [line for line in said if 'prediction' in line]
  assert len(updates) == 1 and 'image (8, 32, 32, 3)' in updates[0]
  canvases = [(32, 48), (48, 32), (32, 64)]
  assert len(predictions) == len(set(predictions)) == len(canvases)
  for height, width in canvases:
    shape = f'image (8, {height}, {width}, 3)'
    assert any(shape in line for line in predictions), shape
  assert any('on 3 canvases' in text for text in straight.messages)


def test_resuming_equals_never_stopping(tmp_path, monkeypatch, data, straight):
  config = tiny_segmentation.config(data)
  dense_run.crash_and_resume(config, tmp_path, monkeypatch, devices=(1, 1))
  dense_run.check_equal(tmp_path, straight.workdir)


def test_a_crash_on_8_devices_is_resumed_on_4(
  tmp_path, monkeypatch, data, straight
):
  assert len(jax.devices()) == 8
  config = tiny_segmentation.config(data)
  dense_run.crash_and_resume(config, tmp_path, monkeypatch, devices=(8, 4))
  _assert_close(tmp_path, straight.workdir)


def test_scores_do_not_depend_on_the_devices(data, straight):
  config = tiny_segmentation.config(data)
  single = loop.run(config, str(straight.workdir), 'eval')
  assert single['count'] == straight.result['count']
  config.mesh.data = 8
  assert loop.run(config, str(straight.workdir), 'eval') == single


def test_two_processes_equal_one(tmp_path, data, straight):
  dense_run.run_by_two_processes(
    'tests.tasks.tiny_segmentation', data, tmp_path
  )
  _assert_close(tmp_path, straight.workdir)
