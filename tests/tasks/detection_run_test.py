"""A detector through data, loop and evaluation, on a tiny COCO."""

import json

import jax
import numpy as np
import pytest
from pycocotools import coco as coco_api
from pycocotools import cocoeval

from tests import fake_coco
from tests.tasks import dense_run, tiny_detection

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
  """A training that was never stopped, on one device."""
  workdir = tmp_path_factory.mktemp('straight')
  config = tiny_detection.config(data)
  config.eval.results_file = str(workdir / 'results.json')
  with pytest.MonkeyPatch.context() as patch:
    tiny_detection.use_tiny(patch)
    return dense_run.run_straight(config, workdir)


def _assert_close(workdir, straight):
  """Losses agree to rounding; what is counted agrees exactly."""
  for key in ('train/loss', 'train/loss_mask', 'train/grad_norm'):
    np.testing.assert_allclose(
      dense_run.values(workdir, key), dense_run.values(straight, key), rtol=1e-4
    )
  assert dense_run.values(workdir, 'eval/count') == dense_run.values(
    straight, 'eval/count'
  )
  for key in ('eval/box_ap50', 'eval/mask_ap50'):
    np.testing.assert_allclose(
      dense_run.values(workdir, key), dense_run.values(straight, key), atol=0.01
    )


def test_it_learns_and_counts_what_can_be_read(straight):
  workdir, result, _ = straight
  assert result['count'] == IMAGES - 1
  losses = dense_run.values(workdir, 'train/loss')
  assert losses[-1] < losses[0]
  parts = [
    dense_run.values(workdir, f'train/loss_{x}')
    for x in ('cls', 'bbox', 'mask')
  ]
  np.testing.assert_allclose(losses, np.sum(parts, axis=0), rtol=1e-5)


def test_the_file_of_results_is_what_the_figures_are_of(straight, data):
  workdir, result, _ = straight
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


def test_one_update_and_one_prediction_a_canvas_are_compiled(straight):
  said = [text for text in straight.messages if 'Compiling' in text]
  for what in ('update', 'prediction'):
    lines = [line for line in said if what in line]
    assert len(lines) == len(tiny_detection.CANVASES)
    for height, width in tiny_detection.CANVASES:
      shape = f'image (8, {height}, {width}, 3)'
      assert any(shape in line for line in lines), shape


def test_resuming_equals_never_stopping(tmp_path, monkeypatch, data, straight):
  config = tiny_detection.config(data)
  dense_run.crash_and_resume(config, tmp_path, monkeypatch, devices=(1, 1))
  dense_run.check_equal(tmp_path, straight.workdir)


def test_a_crash_on_8_devices_is_resumed_on_4(
  tmp_path, monkeypatch, data, straight
):
  assert len(jax.devices()) == 8
  config = tiny_detection.config(data)
  dense_run.crash_and_resume(config, tmp_path, monkeypatch, devices=(8, 4))
  _assert_close(tmp_path, straight.workdir)


def test_two_processes_equal_one(tmp_path, data, straight):
  dense_run.run_by_two_processes('tests.tasks.tiny_detection', data, tmp_path)
  _assert_close(tmp_path, straight.workdir)
