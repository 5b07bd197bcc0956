"""The loop on a tiny model and real digits: resuming, stopping, devices."""

import itertools
import json
import os
import pathlib
import signal
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from acmix_jax import tasks, weights
from acmix_jax.tasks import classification
from acmix_jax.train import loop, metrics_window
from acmix_jax.train import mesh as mesh_lib
from configs import digits_acmix
from tests.train import tiny_run

ROOT = pathlib.Path(__file__).parents[2]

pytestmark = pytest.mark.usefixtures('tiny_model')


def _at_step(monkeypatch, step, action):
  """Does something right after an update."""
  add, updates = metrics_window.Window.add, itertools.count(1)

  def replacement(self, *update):
    add(self, *update)
    if next(updates) == step:
      action()

  monkeypatch.setattr(metrics_window.Window, 'add', replacement)


def _terminate():
  os.kill(os.getpid(), signal.SIGTERM)


def _crash():
  raise RuntimeError('crash')


def test_lines_come_at_the_intervals_and_at_the_end(straight):
  lines = tiny_run.lines(straight)
  train = [line['step'] for line in lines if 'train/loss' in line]
  evals = [line['step'] for line in lines if 'eval/top1' in line]
  assert train == [3, 6, 9, 12, 13]
  assert evals == [5, 10, 13]
  assert lines[-1]['eval/count'] == 364
  assert 'params/alpha' in lines[0]
  assert (straight / 'config.json').exists()
  assert list((straight / 'tensorboard').iterdir())
  parameters = (straight / 'parameters.txt').read_text()
  assert 'head/kernel' in parameters and 'Total: 331.0 ' in parameters


@pytest.mark.parametrize(
  'stop, step, saved',
  [
    (_terminate, 7, 7),
    (_crash, 7, 5),
    # An evaluation is due after these: it is made on resuming.
    (_terminate, 10, 10),
    (_terminate, 13, 13),
  ],
)
def test_resuming_equals_never_stopping(
  tmp_path, monkeypatch, straight, stop, step, saved
):
  with monkeypatch.context() as patch:
    _at_step(patch, step, stop)
    if stop is _crash:
      with pytest.raises(RuntimeError, match='crash'):
        loop.run(tiny_run.config(), str(tmp_path))
    else:
      loop.run(tiny_run.config(), str(tmp_path))
  assert tiny_run.steps(tmp_path)[-1] == saved
  evaluated = [line for line in tiny_run.lines(tmp_path) if 'eval/top1' in line]
  assert all(line['step'] < step for line in evaluated)

  metrics = loop.run(tiny_run.config(), str(tmp_path))
  assert metrics['count'] == 364
  assert tiny_run.lines(tmp_path) == tiny_run.lines(straight)
  for (path, ours), (_, expected) in zip(
    tiny_run.state(tmp_path), tiny_run.state(straight), strict=True
  ):
    np.testing.assert_array_equal(ours, expected, err_msg=str(path))


def test_resumes_on_other_devices(tmp_path, monkeypatch, straight):
  with monkeypatch.context() as patch:
    _at_step(patch, 7, _terminate)
    loop.run(tiny_run.config(), str(tmp_path))
  config = tiny_run.config()
  config.mesh.data, config.mesh.model = 2, 2
  monkeypatch.setattr(mesh_lib, 'MIN_SHARDED_SIZE', 1)
  loop.run(config, str(tmp_path))
  np.testing.assert_allclose(
    tiny_run.losses(tmp_path), tiny_run.losses(straight), rtol=1e-4
  )


@pytest.mark.parametrize('data, model', [(8, 1), (2, 4)])
def test_losses_do_not_depend_on_the_devices(
  tmp_path, monkeypatch, straight, data, model
):
  monkeypatch.setattr(mesh_lib, 'MIN_SHARDED_SIZE', 1)
  config = tiny_run.config()
  config.mesh.data, config.mesh.model = data, model
  loop.run(config, str(tmp_path))
  np.testing.assert_allclose(
    tiny_run.losses(tmp_path), tiny_run.losses(straight), rtol=1e-4
  )


def test_paths_are_taken_in_any_form(tmp_path, monkeypatch, straight):
  monkeypatch.setenv('HOME', str(straight.parent))
  step = pathlib.Path('~', straight.name, 'checkpoints', '13')
  config = tiny_run.config(num_steps=1)
  config.init_from = str(step)
  loop.run(config, tmp_path / 'run')
  for checkpoint in (step, str(step), 13):
    metrics = loop.run(tiny_run.config(), straight, 'eval', checkpoint)
    assert metrics['count'] == 364


def test_finished_training_has_nothing_to_do(straight):
  before = (straight / 'metrics.jsonl').read_text()
  assert loop.run(tiny_run.config(), str(straight)) == {}
  assert (straight / 'metrics.jsonl').read_text() == before


def _names_of_update(step):
  batches = tasks.make_task(tiny_run.config()).train_data(step - 1, 0, 1)
  next(batches)
  batches.close()
  assert len({*batches.names}) == 16
  return batches.names


def test_non_finite_loss_stops_and_leaves_the_last_good_checkpoint(
  tmp_path, monkeypatch, without_shape_checks
):
  to_devices = mesh_lib.to_devices
  calls = []

  def poisoned(batch, mesh):
    batch = to_devices(batch, mesh)
    if 'label' in batch and batch['label'].shape[0] == 16:
      calls.append(1)
      if len(calls) == 7:  # Infinite pixels, as nothing in a config can make.
        batch['image'] = jnp.full(batch['image'].shape, jnp.inf)
    return batch

  monkeypatch.setattr(mesh_lib, 'to_devices', poisoned)
  with pytest.raises(
    metrics_window.NonFiniteError,
    match=r'is (nan|inf) at step 7; step 5 is saved',
  ) as caught:
    loop.run(tiny_run.config(), str(tmp_path))
  names = str(caught.value).split('images of the update:\n  ')[1].split('\n  ')
  assert names == _names_of_update(7)
  assert tiny_run.steps(tmp_path)[-1] == 5
  assert all(np.isfinite(leaf).all() for _, leaf in tiny_run.state(tmp_path))


def test_best_and_latest_checkpoints_stay(tmp_path):
  config = tiny_run.config(
    num_steps=10, eval_every_steps=2, checkpoint_every_steps=3
  )
  loop.run(config, str(tmp_path))
  scores = {
    line['step']: line['eval/top1']
    for line in tiny_run.lines(tmp_path)
    if 'eval/top1' in line
  }
  best = max(scores, key=lambda step: (scores[step], step))
  assert set(tiny_run.steps(tmp_path)) == {9, 10, best}


def test_eval_mode_gives_the_metrics_of_the_training(
  straight, capsys, tmp_path
):
  for step in (10, 13):
    loop.run(tiny_run.config(), str(straight), 'eval', str(step))
    printed = json.loads(capsys.readouterr().out)
    logged = [
      line
      for line in tiny_run.lines(straight)
      if line['step'] == step and 'eval/top1' in line
    ]
    assert [printed] == logged
  # Without a checkpoint of its own: the one to start from.
  config = tiny_run.config()
  with config.unlocked():
    config.init_from = str(straight / 'checkpoints' / '13')
  loop.run(config, str(tmp_path), 'eval')
  assert json.loads(capsys.readouterr().out) == logged[0]


def test_an_evaluation_of_nothing_is_an_error_after_valid_json(
  straight, capsys, monkeypatch
):
  nothing = {'loss': float('nan'), 'top1': float('nan'), 'count': 0}
  monkeypatch.setattr(classification.Evaluator, 'result', lambda self: nothing)
  with pytest.raises(ValueError, match='gave no top1: no example could be'):
    loop.run(tiny_run.config(), str(straight), 'eval', '13')
  assert json.loads(capsys.readouterr().out) == {
    'step': 13,
    'eval/loss': None,
    'eval/top1': None,
    'eval/count': 0,
  }


def test_starts_from_weights_with_a_fresh_head(tmp_path, straight, caplog):
  loaded = weights.load_weights(straight / 'checkpoints' / '13')
  loaded['params']['head'] = {
    'kernel': np.ones((8, 7), np.float32),
    'bias': np.ones(7, np.float32),
  }
  weights.save_weights(tmp_path / 'weights.safetensors', loaded)
  config = tiny_run.config(num_steps=1)
  config.optim.learning_rate = 0.0
  config.init_from = str(tmp_path / 'weights.safetensors')
  with caplog.at_level('INFO', 'acmix_jax'):
    loop.run(config, str(tmp_path / 'run'))
  assert 'params/head/bias; params/head/kernel' in caplog.text
  ours = weights.load_weights(tmp_path / 'run' / 'checkpoints' / '1')
  conv, head = ours['params']['conv'], ours['params']['head']
  chex.assert_trees_all_equal(conv, loaded['params']['conv'])
  assert head['kernel'].shape == (8, 10)


def test_moving_average_is_what_is_evaluated(tmp_path, capsys):
  config = tiny_run.config(num_steps=4, ema_decay=0.9)
  result = loop.run(config, str(tmp_path))
  loaded = weights.load_weights(tmp_path / 'checkpoints' / '4')
  state = {
    jax.tree_util.keystr(path, simple=True, separator='/'): leaf
    for path, leaf in tiny_run.state(tmp_path)
  }
  kernel = loaded['params']['conv']['kernel']
  np.testing.assert_array_equal(kernel, state['ema/params/conv/kernel'])
  assert (kernel != state['params/conv/kernel']).any()
  evaluated = loop.run(config, str(tmp_path), 'eval')
  assert evaluated == result

  config.load_average = False
  assert loop.run(config, str(tmp_path), 'eval')['loss'] != result['loss']
  config = tiny_run.config(num_steps=1)
  config.init_from, config.load_average = str(tmp_path), False
  config.optim.learning_rate = 0.0
  loop.run(config, tmp_path / 'new')
  started = weights.load_weights(tmp_path / 'new')['params']['conv']['kernel']
  np.testing.assert_array_equal(started, state['params/conv/kernel'])


@pytest.mark.parametrize(
  'change, message',
  [
    ({'train.batch_size': 12}, 'train.batch_size=12 .* nearest .* 8 or 16'),
    ({'train.accumulate_steps': 4}, '=16 .* 32, .*accumulate_steps; nearest'),
    ({'eval.batch_size': 4}, '=4 .* 8, the number of devices; nearest .* 8'),
    ({'train.num_steps': 0, 'train.num_epochs': 0}, 'num_steps or'),
    ({'train.log_every_steps': 0}, 'log_every_steps=0 must be >= 1'),
    ({'train.ema_decay': 1.5}, 'ema_decay=1.5 must be at least 0 and below'),
    ({'task': 'detect'}, "task 'detect' is unknown. Did you mean 'detection'"),
    ({'optim.name': 'lamb'}, "optim.name 'lamb' is unknown"),
    ({'optim.momentum': 1.0}, 'optim.momentum=1.0 must be in'),
    ({'optim.groups.frozen.pattern': 'stem'}, "frozen.pattern='stem' matches"),
    ({'loss.smooth_over': 'some'}, "smooth_over='some'"),
    ({'model.num_classes': 9}, 'has 10 classes; set model.num_classes=10'),
    ({'data.eval_split': 'x'}, "'train' and 'validation', not 'x'"),
    ({'seed': -1}, r'seed=-1 must be in \[0, 2\*\*32\)'),
    ({'seed': 2**32}, 'seed=4294967296'),
    ({'data.workers': -1}, 'data.workers=-1 must be >= 0'),
    ({'data.threads': -1}, 'data.threads=-1 must be >= 0'),
    ({'optim.learning_rate': float('nan')}, 'learning_rate=nan must be finite'),
    ({'optim.groups.no_decay.pattern': '('}, 'is no regular expression'),
    ({'mesh.model': 3}, 'mesh.model=3 does not divide the 8 devices'),
    ({'mesh.data': 16}, 'there are 8'),
    ({'checkpoint.keep_latest': 0}, 'keep_latest=0'),
    ({'init_from': '/nowhere'}, '/nowhere is no .safetensors file'),
  ],
)
def test_what_cannot_work_is_said_before_compiling(tmp_path, change, message):
  config = tiny_run.config()
  config.mesh.data = -1
  config.update_from_flattened_dict(change)
  with pytest.raises(ValueError, match=message):
    loop.run(config, str(tmp_path))


def test_unknown_mode_is_refused(tmp_path):
  with pytest.raises(ValueError, match="mode 'test' is unknown"):
    loop.run(tiny_run.config(), str(tmp_path), 'test')


# Runs main.py with an input that waits for a pipe after three batches.
STALLED = """
import os, runpy
from acmix_jax.data import pipeline
draw, left = pipeline.Batches.__next__, [3]
def stall(self):
  left[0] -= 1
  if left[0] < 0:
    open(os.environ['PIPE']).read()
  return draw(self)
pipeline.Batches.__next__ = stall
runpy.run_path('main.py', run_name='__main__')
"""


@pytest.mark.parametrize('program', [['main.py'], ['-c', STALLED]])
@pytest.mark.parametrize('signum', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_ends_with_status_0(tmp_path, program, signum):
  os.mkfifo(tmp_path / 'pipe')
  assert digits_acmix.get_config().data.name == 'digits'
  process = subprocess.Popen(
    [
      sys.executable,
      *program,
      '--config=configs/digits_acmix.py',
      f'--workdir={tmp_path / "run"}',
      '--config.model.name=resnet26',
      '--config.model.stage_sizes=(1,)',
      '--config.model.width=4',
      '--config.train.log_every_steps=1',
      '--config.train.num_steps=100000',
      '--config.optim.warmup_epochs=0.0',
    ],
    cwd=ROOT,
    env=os.environ | {'XLA_FLAGS': '', 'PIPE': str(tmp_path / 'pipe')},
    stderr=subprocess.PIPE,
    text=True,
  )
  try:
    seen = []
    for line in process.stderr:
      seen.append(line)
      if 'step 3/' in line:
        process.send_signal(signum)
        break
    seen.append(process.communicate(timeout=60)[1])
  finally:
    process.kill()
  text = ''.join(seen)
  assert process.returncode == 0, text
  name = {signal.SIGTERM: 'SIGTERM', signal.SIGINT: 'Ctrl-C'}[signum]
  assert f'{name}: saved step' in text
  assert 'Traceback' not in text and 'Exception' not in text
  (step,) = tiny_run.steps(tmp_path / 'run')
  assert step >= 3
  assert tiny_run.lines(tmp_path / 'run')[-1]['step'] == step
