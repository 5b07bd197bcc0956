"""Two processes train, evaluate and stop as one."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

from acmix_jax import models
from acmix_jax.train import loop
from tests.train import augmented_run, tiny_run

ROOT = pathlib.Path(__file__).parents[2]


# Evaluates random weights, on every process, without main.py's output.
EVALUATION = """
import json, sys
import jax
from acmix_jax.train import build, evaluate, mesh
from configs import digits_acmix

mesh.initialize_processes()
config = digits_acmix.get_config()
config.model.name = 'resnet26'
config.model.stage_sizes, config.model.width = (1,), 4
training = build.Training(config, mesh.make_mesh(config.mesh))
state = training.init(jax.random.key(0))
metrics = evaluate.evaluate(training, *state.evaluated())
print(json.dumps(metrics), file=sys.stderr)
"""


# Runs main.py with a slow input: an evaluation takes some seconds.
SLOW = """
import runpy, time
from acmix_jax.data import pipeline
draw = pipeline.Batches.__next__
def slow(self):
  time.sleep(0.5)
  return draw(self)
pipeline.Batches.__next__ = slow
runpy.run_path('main.py', run_name='__main__')
"""


# Runs main.py with an input that fails on one process after three batches.
FAILING = """
import os, runpy
from acmix_jax.data import pipeline
draw, left = pipeline.Batches.__next__, [3]
def failing(self):
  left[0] -= 1
  if left[0] < 0 and os.environ['JAX_PROCESS_ID'] == os.environ['FAILS']:
    raise pipeline.TooManyDamagedError(['a/b.png: cut'], 0)
  return draw(self)
pipeline.Batches.__next__ = failing
runpy.run_path('main.py', run_name='__main__')
"""


# Runs main.py with an input that stalls on one process after two batches.
STALLING = """
import os, runpy, threading
from acmix_jax.data import pipeline
from acmix_jax.train import preemption, reader
reader._STALL_SECONDS, reader._CLOSE_SECONDS = 2, 0.5
preemption._GRACE_SECONDS = 1
draw, left = pipeline.Batches.__next__, [2]
def stalling(self):
  left[0] -= 1
  if left[0] < 0 and os.environ['JAX_PROCESS_ID'] == os.environ['STALLS']:
    threading.Event().wait()
  return draw(self)
pipeline.Batches.__next__ = stalling
runpy.run_path('main.py', run_name='__main__')
"""


def _run(*arguments, **environment):
  """A process with two devices."""
  environment = os.environ | {
    'XLA_FLAGS': '--xla_force_host_platform_device_count=2',
    **environment,
  }
  return subprocess.Popen(
    [sys.executable, *arguments],
    cwd=ROOT,
    env=environment,
    stderr=subprocess.PIPE,
    text=True,
  )


def _train(workdir, *options, program=('main.py',), **environment):
  return _run(
    *program,
    '--config=configs/digits_acmix.py',
    f'--workdir={workdir}',
    '--config.model.name=resnet26',
    '--config.model.stage_sizes=(1,)',
    '--config.model.width=4',
    '--config.train.log_every_steps=1',
    '--config.train.num_steps=100000',
    '--config.train.batch_size=16',
    '--config.optim.warmup_epochs=0.0',
    *options,
    **environment,
  )


def _pair():
  """Environments of two processes that find each other."""
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    address = f'127.0.0.1:{free.getsockname()[1]}'
  return [
    {
      'JAX_COORDINATOR_ADDRESS': address,
      'JAX_NUM_PROCESSES': '2',
      'JAX_PROCESS_ID': str(index),
    }
    for index in range(2)
  ]


def _stop_after(steps, processes):
  """Sends SIGTERM to the last process once the first logged `steps`."""
  errors = []
  try:
    for line in processes[0].stderr:
      errors.append(line)
      if f'step {steps}/' in line:
        processes[-1].terminate()
        break
    for process in processes:
      errors.append(process.communicate(timeout=120)[1])
  finally:
    for process in processes:
      process.kill()
  assert [process.returncode for process in processes] == [0] * len(
    processes
  ), ''.join(errors)


def _losses(workdir):
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  return [json.loads(line)['train/loss'] for line in lines]


def test_two_processes_equal_one_and_stop_together(tmp_path):
  _stop_after(4, [_train(tmp_path / 'two', **own) for own in _pair()])
  _stop_after(4, [_train(tmp_path / 'one')])

  two, one = _losses(tmp_path / 'two'), _losses(tmp_path / 'one')
  assert len(two) >= 4 and len(one) >= 4
  np.testing.assert_allclose(two[:4], one[:4], rtol=1e-4)
  # The state was saved at the step that both agreed on.
  (saved,) = (tmp_path / 'two' / 'checkpoints').iterdir()
  assert int(saved.name) == len(two)


@pytest.mark.slow
def test_two_processes_draw_the_augmentation_of_one(tmp_path, monkeypatch):
  program = '-m', 'tests.train.augmented_run', str(tmp_path / 'two')
  processes = [_run(*program, **own) for own in _pair()]
  try:
    errors = [process.communicate(timeout=240)[1] for process in processes]
  finally:
    for process in processes:
      process.kill()
  assert [process.returncode for process in processes] == [0, 0], errors

  monkeypatch.setattr(
    models,
    'create_model',
    lambda name, num_classes, **fields: augmented_run.Grouped(num_classes),
  )
  loop.run(augmented_run.config(), str(tmp_path / 'one'))
  for two, one in zip(
    tiny_run.lines(tmp_path / 'two'),
    tiny_run.lines(tmp_path / 'one'),
    strict=True,
  ):
    assert two == pytest.approx(one, rel=1e-4)


def test_two_processes_leave_an_evaluation_together(tmp_path):
  options = tmp_path, '--config.train.eval_every_steps=3'
  _stop_after(
    3, [_train(*options, program=('-c', SLOW), **own) for own in _pair()]
  )
  assert len(_losses(tmp_path)) == 3
  (saved,) = (tmp_path / 'checkpoints').iterdir()
  assert saved.name == '3'
  progress = json.loads((saved / 'progress' / 'metadata').read_text())
  assert progress['interrupted']


@pytest.mark.parametrize(
  'fails', ['0', pytest.param('1', marks=pytest.mark.slow)]
)
def test_what_one_process_cannot_read_ends_both_with_its_message(
  tmp_path, fails
):
  processes = [
    _train(
      tmp_path,
      '--config.train.checkpoint_every_steps=2',
      program=('-c', FAILING),
      FAILS=fails,
      **own,
    )
    for own in _pair()
  ]
  try:
    errors = [process.communicate(timeout=120)[1] for process in processes]
  finally:
    for process in processes:
      process.kill()
  for process, error in zip(processes, errors, strict=True):
    assert process.returncode == 1, error
    assert 'TooManyDamagedError: 1 images cannot be read' in error
    assert 'a/b.png: cut' in error
  other = errors[1 - int(fails)]
  assert f'Process {fails} failed: TooManyDamagedError' in other
  assert 'Traceback' not in other
  assert (tmp_path / 'checkpoints' / '2' / 'manifest.json').exists()


def test_a_loss_that_is_not_finite_names_the_images_of_both(tmp_path):
  processes = [
    _train(tmp_path, '--config.optim.learning_rate=1e30', **own)
    for own in _pair()
  ]
  try:
    errors = [process.communicate(timeout=120)[1] for process in processes]
  finally:
    for process in processes:
      process.kill()
  named = []
  for process, error in zip(processes, errors, strict=True):
    assert process.returncode == 1, error
    _, _, listing = error.rpartition('The images of the update:\n')
    named.append(listing.splitlines()[:16])
  assert named[0] == named[1]
  assert len({*named[0]}) == 16  # of the batch, eight a process
  assert all(name.startswith('  ') for name in named[0])


@pytest.mark.parametrize(
  'stalls', [pytest.param('0', marks=pytest.mark.slow), '1']
)
def test_an_input_that_stalls_on_one_process_is_said_and_ended_on_both(
  tmp_path, stalls
):
  processes = [
    _train(tmp_path, program=('-c', STALLING), STALLS=stalls, **own)
    for own in _pair()
  ]
  other, errors = processes[1 - int(stalls)], ['', '']
  try:
    for line in other.stderr:
      errors[1 - int(stalls)] += line
      if f'Process {stalls}: The input stalls: no batch for 2 s.' in line:
        other.terminate()
        break
    for index, process in enumerate(processes):
      errors[index] += process.communicate(timeout=120)[1]
  finally:
    for process in processes:
      process.kill()
  message = f'Process {stalls} failed: TimeoutError: SIGTERM came while'
  assert message in errors[1 - int(stalls)], errors
  assert 'TimeoutError: SIGTERM came while' in errors[int(stalls)], errors
  assert [process.returncode for process in processes] == [1, 1]


def _evaluate(*environments):
  """Metrics that each of the processes returns."""
  processes = [_run('-c', EVALUATION, **own) for own in environments]
  try:
    errors = [process.communicate(timeout=240)[1] for process in processes]
  finally:
    for process in processes:
      process.kill()
  lines = [
    [line for line in error.splitlines() if line.startswith('{')]
    for error in errors
  ]
  assert all(lines), '\n'.join(errors)
  return [json.loads(own[-1]) for own in lines]


def test_processes_return_the_metrics_of_all_examples():
  first, second = _evaluate(*_pair())
  (alone,) = _evaluate({})
  assert first == second
  assert first['count'] == alone['count'] == 364
  assert first == pytest.approx(alone, rel=1e-5)
