"""Trainings of tiny dense tasks: crashed, resumed, and by two processes."""

import itertools
import logging
import os
import pathlib
import socket
import subprocess
import sys
from typing import NamedTuple

import numpy as np
import pytest

from acmix_jax.train import loop, metrics_window
from tests.train import tiny_run

ROOT = pathlib.Path(__file__).parents[2]
# Of `config.train`. None of its intervals divides another, or the steps.
SCHEDULE = {
  'num_steps': 13,
  'batch_size': 8,
  'log_every_steps': 3,
  'eval_every_steps': 5,
  'checkpoint_every_steps': 4,
}


class Patch:
  """Stands in for pytest's in a program of its own."""

  setattr = staticmethod(setattr)


class Straight(NamedTuple):
  """A training that was never stopped, on one device."""

  workdir: pathlib.Path
  result: dict[str, float]
  messages: list[str]  # of its log


def run_straight(config, workdir):
  """Trains, and keeps what the package says meanwhile."""
  messages = []
  logger, handler = logging.getLogger('acmix_jax'), logging.Handler()
  handler.emit = lambda record: messages.append(record.getMessage())
  level = logger.level
  logger.setLevel('INFO')
  logger.addHandler(handler)
  try:
    return Straight(workdir, loop.run(config, str(workdir)), messages)
  finally:
    logger.removeHandler(handler)
    logger.setLevel(level)


def values(workdir, key):
  """What the log says of a metric, line by line."""
  return [line[key] for line in tiny_run.lines(workdir) if key in line]


def crash_and_resume(config, workdir, patch, devices):
  """Crashes in update 7 on some devices; resumes on others."""
  add, updates = metrics_window.Window.add, itertools.count(1)

  def crash(self, *step):
    if next(updates) == 7:
      raise RuntimeError('crash')
    add(self, *step)

  with patch.context() as context, pytest.raises(RuntimeError, match='crash'):
    context.setattr(metrics_window.Window, 'add', crash)
    config.mesh.data = devices[0]
    loop.run(config, str(workdir))
  config.mesh.data = devices[1]
  loop.run(config, str(workdir))


def check_equal(workdir, straight):
  """Two trainings have the same log and the same last state."""
  assert tiny_run.lines(workdir) == tiny_run.lines(straight)
  for (path, ours), (_, theirs) in zip(
    tiny_run.state(workdir), tiny_run.state(straight), strict=True
  ):
    np.testing.assert_array_equal(ours, theirs, err_msg=str(path))


def run_by_two_processes(module, *arguments):
  """Runs `python -m module arguments` as two processes of two devices each."""
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    address = f'127.0.0.1:{free.getsockname()[1]}'
  processes = [
    subprocess.Popen(
      [sys.executable, '-m', module, *map(str, arguments)],
      cwd=ROOT,
      env=os.environ
      | {
        'XLA_FLAGS': os.environ['XLA_FLAGS'].replace('count=8', 'count=2'),
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
    errors = [process.communicate(timeout=240)[1] for process in processes]
  finally:
    for process in processes:
      process.kill()
  assert [p.returncode for p in processes] == [0, 0], ''.join(errors)


def main(tiny):
  """Trains the task of a module on all devices of all processes."""
  from acmix_jax.train import mesh

  mesh.initialize_processes()
  tiny.use_tiny(Patch)
  config = tiny.config(sys.argv[1])
  config.mesh.data = -1
  loop.run(config, sys.argv[2])
