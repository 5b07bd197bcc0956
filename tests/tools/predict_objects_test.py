"""Predictions of detectors, from Python and as pictures."""

import jax
import numpy as np
import pytest

import acmix_jax
from acmix_jax.data import decode, sources
from acmix_jax.tasks import detection
from acmix_jax.tools import pictures, predict
from acmix_jax.train import build, evaluate
from acmix_jax.train import mesh as mesh_lib
from tests import fake_coco
from tests.tasks import tiny_detection


def test_objects_are_those_of_evaluation(tmp_path, monkeypatch, caplog):
  home = fake_coco.write(tmp_path / 'coco')
  config = tiny_detection.config(home)
  tiny_detection.use_tiny(monkeypatch)
  evaluation = build.Evaluation(config, mesh_lib.make_mesh(config.mesh))
  variables = evaluation.task.init(jax.random.key(0))
  metrics = evaluate.evaluate(
    evaluation, variables['params'], {'batch_stats': variables['batch_stats']}
  )
  path = tmp_path / 'weights.safetensors'
  acmix_jax.weights.save_weights(path, variables)

  predictor = predict.Predictor(path, config)
  caplog.clear()
  caplog.set_level('INFO')
  source = sources.make_source(config.data, 'validation')
  evaluator = detection.Evaluator(source, with_masks=True)
  for index in range(len(source)):
    example = source[index]
    image = decode.decode(example['image'])
    outputs = predictor(image).outputs
    notes = {
      'image_id': example['image_id'],
      'original_size': np.int32(image.shape[:2]),
      'mask': True,
    }
    evaluator.update(
      {key: np.asarray(x)[None] for key, x in (outputs | notes).items()}
    )
  assert evaluator.result() == pytest.approx(metrics, abs=1e-6)
  # Once for each canvas.
  assert caplog.text.count('Compiling the') == len(tiny_detection.CANVASES)


OUTPUTS = {
  'boxes': np.float32(
    [[4, 6, 24, 26], [10, 2, 30, 18], [0, 0, 40, 40], [0, 0, 9, 9]]
  ),
  'scores': np.float32([0.98, 0.31, 0.29, 0.9]),
  'labels': np.int32([1, 0, 2, 2]),
  # What is unsure, or no detection, is not shown.
  'valid': np.array([True, True, True, False]),
  'masks': np.ones((4, 28, 28), np.float32),
}


@pytest.mark.parametrize('with_masks', [False, True])
def test_sure_objects_are_drawn_and_named(with_masks):
  image = np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype('uint8')
  outputs = {k: x for k, x in OUTPUTS.items() if with_masks or k != 'masks'}
  prediction = predict.Prediction(image, ('cup', 'person', 'car'), outputs)
  assert str(prediction) == 'person 98.0 %, cup 31.0 %'
  masks = np.zeros((2, 40, 50), bool)
  masks[0, 2:18, 10:30] = masks[1, 6:26, 4:24] = True
  expected = pictures.draw_objects(
    image,
    OUTPUTS['boxes'][[1, 0]],
    OUTPUTS['labels'][[1, 0]],
    prediction.class_names,
    OUTPUTS['scores'][[1, 0]],
    masks if with_masks else None,
  )
  drawn = prediction.draw()
  np.testing.assert_array_equal(np.asarray(drawn), np.asarray(expected))
  assert list(prediction.files()) == ['.png']


def test_an_image_without_objects_stays_as_it_is():
  image = np.zeros((300, 400, 3), np.uint8)
  outputs = {k: x[:0] for k, x in OUTPUTS.items()}
  prediction = predict.Prediction(image, ('cup', 'person', 'car'), outputs)
  assert str(prediction) == ''
  assert not np.asarray(prediction.draw()).any()
