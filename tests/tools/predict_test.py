"""Predictions of trained models, from Python and as pictures in files."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import acmix_jax
from acmix_jax import tasks
from acmix_jax.data import decode, sources
from acmix_jax.tools import pictures, predict
from acmix_jax.train import build, evaluate, loop
from acmix_jax.train import mesh as mesh_lib
from tests import fake_data
from tests.tasks import tiny_segmentation
from tests.train import tiny_run

CONFIG = """
import importlib
def get_config(threads):
  config = importlib.import_module('tests.train.tiny_run').config()
  config.data.threads = int(threads)
  return config
"""


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  """Two updates of the tiny classifier, with moving averages."""
  workdir = tmp_path_factory.mktemp('workdir')
  with pytest.MonkeyPatch.context() as patch:
    tiny_run.use_tiny(patch)
    loop.run(tiny_run.config(num_steps=2, ema_decay=0.5), str(workdir))
  return workdir


@pytest.fixture(autouse=True)
def tiny_model(monkeypatch):
  tiny_run.use_tiny(monkeypatch)


@pytest.fixture
def images(tmp_path):
  """Files of three kinds, one of them no image."""
  folder = tmp_path / 'images'
  folder.mkdir()
  picture = fake_data.picture(0, (40, 32))
  (folder / 'a.jpg').write_bytes(fake_data.encode(picture))
  (folder / 'a.png').write_bytes(fake_data.encode(picture, 'grey16'))
  (folder / 'broken.jpg').write_bytes(b'no image')
  return folder


def _probabilities(workdir, image, average=True):
  """Softmax of the tiny model's logits, by evaluation's transform."""
  variables = acmix_jax.load_weights(workdir, average=average)
  pixels = Image.fromarray(image)
  scale = 8 / min(pixels.size)
  size = [int(side * scale) for side in pixels.size]
  pixels = np.asarray(pixels.resize(size, Image.Resampling.BILINEAR))
  top, left = round((size[1] - 8) / 2), round((size[0] - 8) / 2)
  pixels = pixels[top : top + 8, left : left + 8] / np.float32(255)
  mean = np.array([0.485, 0.456, 0.406], np.float32)
  std = np.array([0.229, 0.224, 0.225], np.float32)
  logits = tiny_run.Tiny(10).apply(variables, ((pixels - mean) / std)[None])
  exponents = np.exp(np.asarray(logits[0], np.float64))
  return exponents / exponents.sum()


@pytest.mark.parametrize('average', [True, False])
def test_probabilities_are_those_of_the_evaluated_weights(workdir, average):
  config = tiny_run.config()
  config.load_average = average
  predictor = predict.Predictor(workdir, config)
  image = fake_data.picture(3, (50, 33))
  outputs = predictor(image).outputs
  assert outputs.keys() == {'probabilities'}
  expected = _probabilities(workdir, image, average)
  np.testing.assert_allclose(outputs['probabilities'], expected, rtol=1e-4)
  other = _probabilities(workdir, image, not average)
  assert np.abs(expected - other).max() > 1e-3


def test_recorded_config_and_names_of_the_workdir_suffice(workdir, images):
  predictor = predict.Predictor(str(workdir))
  assert predictor.class_names == tuple('0123456789')
  prediction = predictor(images / 'a.jpg')
  probabilities = prediction.outputs['probabilities']
  best = np.argsort(-probabilities)
  assert str(prediction).startswith(
    f'{best[0]} {100 * probabilities[best[0]]:.1f} %, {best[1]} '
  )
  drawn = pictures.draw_probabilities(
    prediction.image, probabilities, predictor.class_names
  )
  assert prediction.draw() == drawn
  assert list(prediction.files()) == ['.png']


def test_another_number_of_classes_is_told_with_the_field(workdir):
  config = tiny_run.config()
  config.model.num_classes = 7
  with pytest.raises(
    ValueError, match='on 10 classes.*set model.num_classes=10'
  ):
    predict.Predictor(workdir, config)


def test_images_of_all_sizes_share_a_compilation(workdir, caplog):
  caplog.set_level('INFO')
  predictor = predict.Predictor(workdir)
  for size in ((9, 30), (64, 8), (8, 8)):
    predictor(fake_data.picture(0, size))
  assert caplog.text.count('Compiling the') == 1


def test_unreadable_images_are_named_and_the_others_drawn(
  workdir, images, tmp_path, capsys
):
  out = tmp_path / 'deep' / 'out'
  paths = [
    images / name for name in ('broken.jpg', 'a.jpg', 'none.jpg', 'a.png')
  ]
  status = predict.main([str(workdir), *map(str, paths), f'--out={out}'])
  assert status == 1
  assert sorted(path.name for path in out.iterdir()) == ['a-2.png', 'a.png']
  said = capsys.readouterr()
  lines = said.out.splitlines()
  assert [line.partition(': ')[0] for line in lines] == [
    str(paths[1]),
    str(paths[3]),
  ]
  assert lines[0].endswith(f': {predict.Predictor(workdir)(paths[1])}')
  assert f'{paths[0]}: no image of a known format' in said.err
  assert str(paths[2]) in said.err
  assert '2 of 4 images could not be read' in said.err


def test_configs_of_files_are_taken_with_their_fields(
  workdir, images, tmp_path, monkeypatch
):
  file = tmp_path / 'recipe.py'
  file.write_text(CONFIG)
  made, make_task = [], tasks.make_task
  monkeypatch.setattr(
    tasks, 'make_task', lambda config: made.append(config) or make_task(config)
  )
  arguments = [str(workdir), str(images / 'a.jpg'), f'--out={tmp_path}']
  field = '--config.load_average=False'
  assert predict.main([f'{file}:3', *arguments, field]) == 0
  assert (tmp_path / 'a.png').exists()
  (config,) = made
  assert (config.data.threads, config.load_average) == (3, False)


def test_weights_in_a_file_need_the_config(workdir, tmp_path):
  path = tmp_path / 'weights.safetensors'
  acmix_jax.weights.save_weights(path, acmix_jax.load_weights(workdir))
  with pytest.raises(ValueError, match='belongs to no workdir'):
    predict.Predictor(path)
  predictor = predict.Predictor(path, tiny_run.config())
  # Nothing is kept with them.
  assert predictor.class_names[3] == 'class 3'
  image = fake_data.picture(1)
  np.testing.assert_allclose(
    predictor(image).outputs['probabilities'],
    _probabilities(workdir, image),
    rtol=1e-4,
  )


class Quarters:
  """A task whose every image has a label in each quarter."""

  def __init__(self, config):
    self.config = config

  def init(self, rng):
    return tiny_run.Tiny(10).init(rng, jnp.zeros((1, 8, 8, 3)))

  def inference_batch(self, image):
    return {'image': image[None]}

  def infer(self, params, model_state, batch):
    _, height, width, _ = batch['image'].shape
    lower = jnp.arange(height)[:, None] >= height // 2
    right = jnp.arange(width)[None] >= width // 2
    return {'label_map': (2 * lower + right)[None]}


def test_label_maps_become_pictures_and_palette_files(
  workdir, images, tmp_path, monkeypatch, capsys
):
  monkeypatch.setattr(tasks, 'make_task', Quarters)
  path = images / 'a.jpg'
  assert predict.main([str(workdir), str(path), f'--out={tmp_path}']) == 0
  expected = np.kron([[0, 1], [2, 3]], np.ones((16, 20)))
  with Image.open(tmp_path / 'a_labels.png') as labels:
    np.testing.assert_array_equal(np.asarray(labels), expected)
  drawn = pictures.draw_label_map(
    decode.decode(path.read_bytes()), expected.astype(int), '0123456789'
  )
  with Image.open(tmp_path / 'a.png') as picture:
    np.testing.assert_array_equal(np.asarray(picture), np.asarray(drawn))
  assert '0 25.0 %, 1 25.0 %, 2 25.0 %\n' in capsys.readouterr().out


def test_label_maps_are_those_of_evaluation(tmp_path, monkeypatch, caplog):
  home = tiny_segmentation.write_ade20k(tmp_path)
  config = tiny_segmentation.config(home)
  tiny_segmentation.use_tiny(monkeypatch)
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
  matrix = np.zeros((3, 3), np.int64)
  source = sources.make_source(config.data, 'validation')
  for index in range(len(source)):
    if index == tiny_segmentation.DAMAGED:
      continue
    example = source[index]
    labels = example['label_map']
    predicted = predictor(decode.decode(example['image'])).outputs['label_map']
    assert predicted.shape == labels.shape
    counted = labels < 3
    np.add.at(matrix, (labels[counted], predicted[counted]), 1)
  hits = np.diag(matrix)
  iou = hits / (matrix.sum(axis=0) + matrix.sum(axis=1) - hits)
  assert metrics['mean_iou'] == pytest.approx(np.nanmean(iou))
  assert metrics['count'] == len(source) - 1
  # Once for each size of an image.
  assert caplog.text.count('Compiling the') == len(tiny_segmentation.SIZES)


def _change(workdir, tmp_path, change):
  copy = tmp_path / 'copy'
  shutil.copytree(workdir, copy)
  recorded = copy / 'config.json'
  content = json.loads(recorded.read_text())
  recorded.write_text(json.dumps(change(content)))
  return copy


def test_recorded_configs_that_do_not_serve_are_answered(workdir, tmp_path):
  def older(content):
    del content['data']['mean']
    return content

  copy = _change(workdir, tmp_path, older)
  with pytest.raises(
    ValueError, match='config.json of .* lacks .*mean.*config'
  ):
    predict.Predictor(copy)
  (copy / 'config.json').write_text('[')
  with pytest.raises(ValueError, match='config.json cannot be read'):
    predict.Predictor(copy)
  # It is not touched, unlike by a training.
  assert (copy / 'config.json').read_text() == '['
  (copy / 'config.json').unlink()
  with pytest.raises(ValueError, match='has no config.json; give the config'):
    predict.Predictor(copy)


@pytest.mark.parametrize(
  'arguments, message',
  [
    (['{workdir}', '--out=x'], 'one image or more'),
    (['none.py', '{workdir}', 'a.jpg', '--out=x'], "File 'none.py' is unknown"),
    (['{workdir}/none', 'a.jpg', '--out=x'], 'no workdir with checkpoints'),
    (['{workdir}', 'a.jpg', '--out=x', '--config.seed=1'], '--config.seed=1: '),
  ],
)
def test_what_cannot_be_done_is_said(workdir, capsys, arguments, message):
  arguments = [text.format(workdir=workdir) for text in arguments]
  assert predict.main(arguments) == 2
  assert message in capsys.readouterr().err


def test_arrays_that_are_no_images_are_refused(workdir):
  predictor = predict.Predictor(workdir)
  with pytest.raises(ValueError, match=r'this is float64 \[4, 4, 3\]'):
    predictor(np.zeros((4, 4, 3)))


def test_nothing_of_the_data_is_opened(workdir, monkeypatch):
  config = tiny_run.config()
  config.data.name, config.data.dir = 'folder', '/nowhere'
  prediction = predict.Predictor(workdir, config)(fake_data.picture(0))
  assert jax.tree.leaves(prediction.outputs)[0].shape == (10,)
