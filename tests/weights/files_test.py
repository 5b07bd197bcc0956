"""Variables in files, and which file a path stands for."""

import pathlib
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors

import acmix_jax
from acmix_jax import weights
from acmix_jax.train import checkpoint, state

_ROOT = str(pathlib.Path(__file__).parents[2])
_VARIABLES = {
  'params': {'head': {'kernel': np.arange(6.0).reshape(2, 3)}},
  'batch_stats': {'norm': {'mean': np.ones(3)}},
}
_DESCRIPTION = {'class_names': ['cat', 'Füchse'], 'images': 7}


def _state(step, *, ema=None):
  """A state whose variables are those above plus the step."""
  variables = jax.tree.map(lambda x: jnp.asarray(x + step), _VARIABLES)
  params = variables.pop('params')
  return state.TrainState(
    step=jnp.int32(step),
    params=params,
    model_state=variables,
    opt_state=(jnp.ones(3), None),
    ema=ema,
  )


def _save(workdir, *states_and_metrics, best_metric='score'):
  checkpoints = checkpoint.Checkpoints(
    workdir,
    keep_latest=9,
    keep_best=1,
    best_metric=best_metric,
    description=_DESCRIPTION,
  )
  for state_, metrics in states_and_metrics:
    checkpoints.save(state_, step=int(state_.step), window={}, metrics=metrics)
  checkpoints.close()


def _plus(step):
  return jax.tree.map(lambda x: np.float32(x + step), _VARIABLES)


@pytest.fixture
def workdir(tmp_path):
  """Three checkpoints; the second is the best, the third was not evaluated."""
  _save(
    tmp_path,
    (_state(1), {'score': 0.5, 'loss': 9.0}),
    (_state(2), {'score': 0.7, 'loss': 1.0}),
    (_state(3), {}),
  )
  return tmp_path


def test_a_workdir_stands_for_its_best_checkpoint_whatever_the_metric(workdir):
  assert weights.find(workdir) == workdir / 'checkpoints' / '2'
  chex.assert_trees_all_equal(weights.load_weights(str(workdir)), _plus(2))


def test_a_workdir_without_evaluation_stands_for_its_latest(tmp_path):
  nan = {'score': float('nan')}
  _save(tmp_path, (_state(1), nan), (_state(2), {}), (_state(3), nan))
  assert weights.find(tmp_path).name == '3'


def test_an_evaluation_without_the_ranking_metric_is_an_error(tmp_path):
  with pytest.raises(KeyError, match='score'):
    _save(tmp_path, (_state(1), {'loss': 1.0}))


def test_one_checkpoint_is_read_as_numpy_without_warnings(workdir, caplog):
  path = workdir / 'checkpoints' / '1'
  assert weights.find(path) == path
  variables = weights.load_weights(path)
  chex.assert_trees_all_equal(variables, _plus(1))
  assert all(type(x) is np.ndarray for x in jax.tree.leaves(variables))
  assert not [r for r in caplog.records if r.levelname != 'INFO']


def test_moving_averages_are_read_unless_refused(tmp_path, caplog):
  raw, average = _state(1), _state(5)
  ema = {'params': average.params, 'model_state': average.model_state}
  _save(tmp_path, (raw.replace(ema=ema), {}))
  with caplog.at_level('INFO', 'acmix_jax'):
    chex.assert_trees_all_equal(weights.load_weights(tmp_path), _plus(5))
  (record,) = (r for r in caplog.records if r.name.startswith('acmix_jax'))
  assert 'moving averages' in record.getMessage()
  with caplog.at_level('INFO', 'acmix_jax'):
    chex.assert_trees_all_equal(
      weights.load_weights(tmp_path, average=False), _plus(1)
    )
  assert 'the variables of the last update of' in caplog.text


def test_a_model_without_other_variables_than_parameters_is_read(tmp_path):
  params = {'w': jnp.ones(2)}
  _save(tmp_path, (_state(1).replace(params=params, model_state={}), {}))
  chex.assert_trees_all_equal(
    weights.load_weights(tmp_path), {'params': {'w': np.ones(2, np.float32)}}
  )


def test_weights_of_many_devices_are_read_on_one(tmp_path):
  """A process with one device reads what eight devices saved."""
  mesh = jax.make_mesh(
    (8,), ('data',), axis_types=(jax.sharding.AxisType.Auto,)
  )
  sharding = jax.sharding.NamedSharding(
    mesh, jax.sharding.PartitionSpec('data')
  )
  split = jax.device_put(jnp.arange(8.0), sharding)
  _save(tmp_path, (_state(1).replace(params={'w': split}), {}))
  program = (
    'import acmix_jax, jax, sys\n'
    'assert len(jax.devices()) == 1\n'
    "print(acmix_jax.load_weights(sys.argv[1])['params']['w'].tolist())"
  )
  result = subprocess.run(
    [sys.executable, '-W', 'error', '-c', program, str(tmp_path)],
    env={'XLA_FLAGS': '', 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': _ROOT},
    capture_output=True,
    text=True,
  )
  assert result.stdout == f'{list(map(float, range(8)))}\n', result.stderr
  assert result.stderr == ''


def test_a_file_holds_the_variables(tmp_path):
  path = tmp_path / 'a.safetensors'
  weights.save_weights(path, _VARIABLES)
  assert acmix_jax.load_weights is weights.load_weights
  chex.assert_trees_all_equal(weights.load_weights(path), _VARIABLES)
  assert [p.name for p in tmp_path.iterdir()] == ['a.safetensors']


def test_the_description_of_the_data_is_kept_with_weights(workdir, tmp_path):
  assert weights.load_description(workdir) == _DESCRIPTION
  path = tmp_path / 'a.safetensors'
  weights.save_weights(path, _VARIABLES, _DESCRIPTION)
  assert weights.load_description(path) == _DESCRIPTION
  chex.assert_trees_all_equal(weights.load_weights(path), _VARIABLES)


def test_weights_may_come_without_a_description(tmp_path):
  path = tmp_path / 'a.safetensors'
  for metadata in (None, {'format': 'pt'}):
    safetensors.save_file({'params/w': np.zeros(2)}, path, metadata)
    assert weights.load_description(path) == {}
  path.write_text('no tensors')
  with pytest.raises(ValueError, match=r'is no \.safetensors file'):
    weights.load_description(path)


def test_the_home_may_be_written_as_a_tilde(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  weights.save_weights('~/a.safetensors', _VARIABLES)
  for path in ('~/a.safetensors', pathlib.Path('~/a.safetensors')):
    assert weights.find(path) == tmp_path / 'a.safetensors'
    chex.assert_trees_all_equal(weights.load_weights(path), _VARIABLES)


def test_other_files_and_paths_are_refused(tmp_path):
  path = tmp_path / 'a.safetensors'
  safetensors.save_file({'fc.weight': np.zeros(2)}, path)
  with pytest.raises(ValueError, match=r"'fc\.weight', none starts with"):
    weights.load_weights(path)
  path.write_text('no tensors')
  with pytest.raises(ValueError, match=r'is no \.safetensors file'):
    weights.load_weights(path)
  (tmp_path / 'checkpoints').mkdir()
  for wrong in (tmp_path, tmp_path / 'nothing'):
    with pytest.raises(ValueError, match='no workdir with checkpoints'):
      weights.load_weights(wrong)


def test_importing_the_package_does_not_import_orbax():
  program = "import acmix_jax, sys; assert 'orbax' not in sys.modules"
  subprocess.run([sys.executable, '-c', program], check=True, cwd=_ROOT)
