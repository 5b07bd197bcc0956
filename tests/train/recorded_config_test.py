"""Configs that cannot resume a training are refused before it is built."""

import pytest

from acmix_jax.train import build, loop, recorded_config
from tests.train import tiny_run

pytestmark = pytest.mark.usefixtures('tiny_model')


@pytest.fixture
def workdir(tmp_path):
  """A training of one step."""
  loop.run(tiny_run.config(num_steps=1), str(tmp_path))
  return tmp_path


@pytest.mark.parametrize(
  'change, message',
  [
    ({'model.name': 'other'}, "model.name='other'; it was 'tiny'"),
    ({'model.kernel_att': 5}, 'model.kernel_att=5; it was 7'),
    ({'optim.name': 'adamw'}, "optim.name='adamw'; it was 'sgd'"),
    ({'train.ema_decay': 0.9}, 'train.ema_decay=0.9; it was 0.0'),
    ({'model.stage_sizes': (1, 1)}, r'stage_sizes=\[1, 1\]; it was \[\]'),
  ],
)
def test_fields_of_the_state_are_named_and_nothing_is_built(
  workdir, monkeypatch, change, message
):
  monkeypatch.setattr(build, 'Training', None)
  config = tiny_run.config(num_steps=2)
  config.update_from_flattened_dict(change)
  before = (workdir / 'config.json').read_text()
  with pytest.raises(ValueError, match=message) as error:
    loop.run(config, str(workdir))
  assert str(error.value).count('it was') == 1
  error.match(f'init_from={workdir} starts there')
  assert (workdir / 'config.json').read_text() == before


def test_all_fields_of_the_state_are_named(workdir):
  config = tiny_run.config()
  config.update_from_flattened_dict(
    {'model.name': 'other', 'optim.name': 'adamw', 'optim.learning_rate': 1.0}
  )
  with pytest.raises(ValueError, match='optim.name') as error:
    recorded_config.check(workdir, config)
  error.match('model.name')
  assert 'learning_rate' not in str(error.value)


def test_other_fields_are_said(workdir, caplog):
  config = tiny_run.config(num_steps=2)
  config.update_from_flattened_dict(
    {
      'model.dtype': 'bfloat16',
      'model.remat': 'block',
      'model.attention_implementation': 'tiles',
      'optim.learning_rate': 0.5,
    }
  )
  loop.run(config, str(workdir))
  assert "Resuming with model.dtype='bfloat16'; it was 'float32'" in caplog.text
  assert 'Resuming with optim.learning_rate=0.5; it was 0.1' in caplog.text
  assert tiny_run.steps(workdir)[-1] == 2


def test_a_workdir_without_checkpoints_takes_any_config(tmp_path):
  (tmp_path / 'config.json').write_text('{"task": "other"}')
  loop.run(tiny_run.config(num_steps=1), str(tmp_path))


@pytest.mark.parametrize(
  'change, message',
  [
    ({'train.ema_decay': 0.9}, 'missing: ema/'),
    ({'optim.name': 'adamw'}, 'unknown: opt_state/2/trace'),
    ({'optim.groups.frozen.pattern': 'conv'}, 'unknown: .*trace/conv/kernel'),
  ],
)
@pytest.mark.parametrize('sealed', [True, False])
def test_another_state_is_refused_where_nothing_is_recorded(
  workdir, change, message, sealed
):
  (workdir / 'config.json').unlink()
  if not sealed:
    (workdir / 'checkpoints' / '1' / 'manifest.json').unlink()
  config = tiny_run.config(num_steps=2)
  config.update_from_flattened_dict(change)
  with pytest.raises(ValueError, match='holds another state') as error:
    loop.run(config, str(workdir))
  error.match(message)
  assert len(str(error.value).splitlines()) <= 5
  assert tiny_run.steps(workdir) == [1]


def test_recorded_configs_are_loaded_as_they_were(workdir):
  config = tiny_run.config(num_steps=1)
  loaded = recorded_config.load(workdir)
  assert loaded == config and loaded.is_locked
  assert loaded.data.crop_ratio == (3 / 4, 4 / 3)
  assert isinstance(loaded.model.stage_sizes, tuple)
