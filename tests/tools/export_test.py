"""Networks as files, computed by programs that lack this package."""

import json
import re
import subprocess
import sys
import types

import chex
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import acmix_jax
from acmix_jax import tasks
from acmix_jax.tools import export, to_onnx
from acmix_jax.train import checkpoint, recorded_config, state
from configs import digits_acmix
from tests.fixtures import official

# What ml_collections reads configs with.
pytestmark = pytest.mark.filterwarnings('ignore:.*load_module')

_NETWORKS = {
  'resnet26_acmix': (dict(stage_sizes=(1,), width=8), (32, 48)),
  'san10_acmix': (
    dict(stage_sizes=(1,), stem_size=1, widths=(32,), kernel_sizes=(3,)),
    (16, 24),
  ),
  'pvt_tiny_acmix': (
    dict(
      stage_sizes=(1,),
      widths=(8,),
      num_heads=(2,),
      mlp_ratios=(2,),
      reductions=(2,),
    ),
    (32, 48),
  ),
  # Of its two blocks the second is shifted.
  'swin_tiny_acmix': (
    dict(stage_sizes=(2,), width=8, num_heads=(2,), window_size=4),
    (24, 36),
  ),
}


def _network(name, size, **fields):
  model = acmix_jax.create_model(name, num_classes=5, **fields)
  return export.Network(model, _variables(model, size), size, {'model': name})


def _variables(model, size):
  images = jnp.zeros((1, *size, 3))
  return official.random_variables(model, images, train=False)


def _images(count, size):
  shape = (count, *size, 3)
  return np.random.default_rng(1).standard_normal(shape, np.float32)


def _assert_close(found, wanted, tolerance=1e-6):
  error = np.abs(np.asarray(found) - wanted).max()
  assert error <= tolerance * np.abs(wanted).max()


@pytest.mark.parametrize('name', _NETWORKS)
def test_a_program_computes_what_the_model_does(name, without_shape_checks):
  # What checks shapes in tests cannot compare a number of images that is free.
  fields, size = _NETWORKS[name]
  network = _network(name, size, **fields)
  exported = jax.export.deserialize(export.stablehlo(network))
  assert exported.platforms == export.PLATFORMS
  # That of jax, which checks the sizes of the images.
  calls = re.findall(r'custom_call @([\w.$]+)', exported.mlir_module())
  assert set(calls) == {'shape_assertion'}
  images = _images(3, size)
  apply = jax.jit(network.model.apply, static_argnames='train')
  _assert_close(
    exported.call(images), apply(network.variables, images, train=False)
  )


def test_a_detector_gives_the_fields_of_its_detections():
  size = (64, 64)
  network = _network(
    'retinanet',
    size,
    backbone='resnet26',
    stage_sizes=(1, 1, 1, 1),
    width=4,
    neck_features=4,
    max_detections=7,
  )
  exported = jax.export.deserialize(export.stablehlo(network))
  images, sizes = _images(2, size), np.int32([[64, 64], [50, 40]])
  found = exported.call(images, sizes)
  wanted = jax.jit(network.model.apply)(network.variables, images, sizes)
  assert found.keys() == {'boxes', 'scores', 'labels', 'valid'}
  assert wanted.valid.any()
  np.testing.assert_array_equal(found['labels'], wanted.labels)
  np.testing.assert_array_equal(found['valid'], wanted.valid)
  _assert_close(found['scores'], wanted.scores, 1e-5)
  _assert_close(found['boxes'], wanted.boxes, 1e-5)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A workdir with one checkpoint of the digits' model."""
  workdir = tmp_path_factory.mktemp('run')
  config = digits_acmix.get_config()
  config.model.update(stage_sizes=(1,), width=8, dtype='bfloat16')
  recorded_config.write(workdir, config)
  variables = _variables(tasks.make_task(config).model, (8, 8))
  checkpoints = checkpoint.Checkpoints(
    workdir,
    keep_latest=1,
    keep_best=1,
    best_metric='top1',
    description={'class_names': list('0123456789'), 'images': 3},
  )
  params = variables.pop('params')
  checkpoints.save(
    state.TrainState(jnp.int32(1), params, variables, opt_state=(), ema=None),
    step=1,
    window={},
    metrics={},
  )
  checkpoints.close()
  return workdir


def _without_this_package(program, *arguments):
  """Runs a program in a process that cannot import it."""
  program = f"import sys; sys.modules['acmix_jax'] = None\n{program}"
  result = subprocess.run(
    [sys.executable, '-W', 'error', '-c', program, *map(str, arguments)],
    capture_output=True,
    text=True,
    check=False,
  )
  assert result.returncode == 0, result.stderr


def _logits(run, images):
  config = recorded_config.load(run)
  config.model.dtype = 'float32'
  model = tasks.make_task(config).model
  return model.apply(acmix_jax.load_weights(run), jnp.asarray(images))


def test_a_training_is_computed_by_three_lines_of_jax(run, tmp_path, capsys):
  out = tmp_path / 'digits.stablehlo'
  assert export.main([str(run), str(out)]) == 0
  assert 'resnet26_acmix, images [b, 8, 8, 3]' in capsys.readouterr().out
  images = _images(2, (8, 8))
  np.save(tmp_path / 'images.npy', images)
  _without_this_package(
    """
import pathlib, jax, jax.export, numpy as np
exported = jax.export.deserialize(pathlib.Path(sys.argv[1]).read_bytes())
logits = exported.call(np.load(sys.argv[2]))
np.save(sys.argv[3], logits)
""",
    *(out, tmp_path / 'images.npy', tmp_path / 'logits.npy'),
  )
  # The training computed in bfloat16; a file computes in float32.
  _assert_close(np.load(tmp_path / 'logits.npy'), _logits(run, images))
  assert json.loads((tmp_path / 'digits.json').read_text()) == {
    'model': 'resnet26_acmix',
    'image_size': [8, 8],
    'mean': [0.485, 0.456, 0.406],
    'std': [0.229, 0.224, 0.225],
    'class_names': list('0123456789'),
  }


def test_weights_of_a_training_are_exported_and_used_by_name(run, tmp_path):
  out = tmp_path / 'digits.safetensors'
  assert export.main([str(run), str(out)]) == 0
  assert [path.name for path in tmp_path.iterdir()] == [out.name]
  chex.assert_trees_all_equal(
    acmix_jax.load_weights(out), acmix_jax.load_weights(run)
  )
  network = export.from_weights(
    'resnet26_acmix',
    out,
    (8, 8),
    **dict(num_classes=10, stage_sizes=(1,), width=8, stem='small'),
  )
  assert network.description == {
    'model': 'resnet26_acmix',
    'image_size': (8, 8),
    'class_names': list('0123456789'),
  }
  chex.assert_trees_all_equal(network.variables, acmix_jax.load_weights(run))


def test_a_training_is_computed_by_onnxruntime(run, tmp_path):
  pytest.importorskip('jax2onnx')
  out = tmp_path / 'digits.onnx'
  assert export.main([str(run), str(out)]) == 0
  images = _images(3, (8, 8))
  np.save(tmp_path / 'images.npy', images)
  _without_this_package(
    """
sys.modules['jax'] = None
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1])
[logits] = session.run(['logits'], {'images': np.load(sys.argv[2])})
np.save(sys.argv[3], logits)
""",
    *(out, tmp_path / 'images.npy', tmp_path / 'logits.npy'),
  )
  _assert_close(np.load(tmp_path / 'logits.npy'), _logits(run, images), 1e-5)


class FakeConverter:
  """jax2onnx and onnxruntime in one: keeps a function, and computes it."""

  def __init__(self, error=0.0):
    self.error = error

  def install(self, monkeypatch):
    monkeypatch.setitem(sys.modules, 'jax2onnx', self)
    monkeypatch.setitem(sys.modules, 'onnxruntime', self)
    return self

  def to_onnx(self, function, inputs, input_names, output_names):
    self.function, self.names = function, output_names
    self.program = jax.make_jaxpr(function)(*inputs)
    return types.SimpleNamespace(SerializeToString=lambda: b'model')

  def set_default_logger_severity(self, severity):
    pass

  def InferenceSession(self, model):  # noqa: N802
    return self

  def run(self, names, arrays):
    assert names == self.names
    return [x + self.error for x in self.function(*arrays.values())]


def _padded_on_cpu(x):
  """jnp.pad is a jit of its own, relu a function with a gradient of its own."""

  def on_cpu(x):
    x = jnp.concatenate([x[:, :0], x], axis=1)
    return jax.nn.relu(jnp.pad(x, ((0, 0), (2, 1)), constant_values=3))

  def elsewhere(x):
    return jnp.zeros((len(x), x.shape[1] + 3))

  return lax.platform_dependent(x, cpu=on_cpu, default=elsewhere)


def test_a_converter_is_given_operations_alone(monkeypatch):
  converter = FakeConverter().install(monkeypatch)
  inputs = {'images': jax.ShapeDtypeStruct((2, 5), jnp.float32)}
  to_onnx.convert(_padded_on_cpu, inputs, 0)
  assert {x.primitive.name for x in converter.program.eqns} == {
    'broadcast_in_dim',
    'concatenate',
    'max',
  }


def test_other_numbers_than_ours_are_an_error(monkeypatch):
  FakeConverter(error=2e-5).install(monkeypatch)
  inputs = {'images': jax.ShapeDtypeStruct((2, 5), jnp.float32)}
  with pytest.raises(ValueError, match='other logits than jax'):
    to_onnx.convert(jnp.tanh, inputs, 1e-5)


def test_an_operation_that_cannot_be_converted_is_named(
  run, tmp_path, monkeypatch, capsys
):
  converter = FakeConverter().install(monkeypatch)

  # The converter has a file for each operation.
  code = compile("raise ValueError('not b')", 'jax2onnx/plugins/rem.py', 'exec')
  converter.to_onnx = lambda *args, **names: exec(code)
  assert export.main([str(run), str(tmp_path / 'a.onnx')]) == 2
  assert 'at the operation rem: not b' in capsys.readouterr().err
  assert not list(tmp_path.iterdir())


def test_a_missing_converter_is_told(run, tmp_path, monkeypatch, capsys):
  monkeypatch.setitem(sys.modules, 'jax2onnx', None)
  assert export.main([str(run), str(tmp_path / 'a.onnx')]) == 2
  assert "pip install 'acmix-jax[onnx]'" in capsys.readouterr().err


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['RUN', 'a.pb'], r'must end in one of .stablehlo, .onnx, .safetensors'),
    (['RUN', 'nowhere/a.onnx'], 'there is no folder nowhere'),
    (['RUN', 'a.onnx'], 'is no .safetensors file, no checkpoint'),
    (['resnet26', 'a.onnx'], 'resnet26 is a model: give its --weights=FILE'),
    (['RUN', 'a.onnx', '--width=8'], 'fields of a model are given with'),
    (
      ['resnet2', 'a.onnx', '--weights=b.safetensors'],
      "Did you mean 'resnet26'",
    ),
    (
      ['upernet:swin_tiny', 'a.onnx', '--weights=b.safetensors'],
      'give --image_size=HxW',
    ),
  ],
)
def test_wrong_arguments_are_answered(
  arguments, message, tmp_path, monkeypatch, capsys
):
  monkeypatch.chdir(tmp_path)
  assert export.main(arguments) == 2
  assert message in capsys.readouterr().err
  assert not list(tmp_path.iterdir())


def test_a_wrong_size_is_answered(capsys):
  with pytest.raises(SystemExit):
    export.main(['RUN', 'a.onnx', '--image_size=12x'])
  assert "'12x' is no size in pixels" in capsys.readouterr().err
