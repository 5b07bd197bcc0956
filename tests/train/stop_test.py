"""SIGTERM and Ctrl-C are heard in any state of a training."""

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from acmix_jax.tasks import classification
from acmix_jax.train import loop, preemption, reader
from tests.train import tiny_run

pytestmark = pytest.mark.usefixtures('tiny_model')


def _send(signum):
  os.kill(os.getpid(), signum)


class Intercepted:
  """Batches that do something before one of them is drawn."""

  def __init__(self, batches, before, action):
    self._batches, self._left, self._action = batches, before, action

  @property
  def damaged(self):
    return self._batches.damaged

  @property
  def names(self):
    return self._batches.names

  def __iter__(self):
    return self

  def __next__(self):
    self._left -= 1
    if self._left == 0:
      self._action()
    return next(self._batches)

  def close(self):
    self._batches.close()


def _intercept(monkeypatch, split, before, action):
  name = f'{split}_data'
  original = getattr(classification.Classification, name)

  def replacement(self, *args):
    return Intercepted(original(self, *args), before, action)

  monkeypatch.setattr(classification.Classification, name, replacement)


@pytest.fixture
def stall():
  """Waits like a file that never answers, until the test is over."""
  over = threading.Event()
  yield over.wait
  over.set()


def _send_soon(signum):
  threading.Timer(0.3, _send, [signum]).start()


def _check_resumed(workdir, straight):
  loop.run(tiny_run.config(), str(workdir))
  assert tiny_run.lines(workdir) == tiny_run.lines(straight)
  for (path, ours), (_, expected) in zip(
    tiny_run.state(workdir), tiny_run.state(straight), strict=True
  ):
    np.testing.assert_array_equal(ours, expected, err_msg=str(path))


@pytest.mark.parametrize(
  'signum, name', [(signal.SIGTERM, 'SIGTERM'), (signal.SIGINT, 'Ctrl-C')]
)
@pytest.mark.parametrize(
  'split, before, saved',
  [
    ('train', 8, 7),
    ('train', 6, 5),  # Saved already: an evaluation is due after step 5.
    ('train', 1, 0),
    ('eval', 2, 5),
  ],
)
def test_a_stalled_input_does_not_hide_a_signal(
  tmp_path, monkeypatch, caplog, straight, stall, signum, name, split, before,
  saved,
):  # fmt: skip
  caplog.set_level('INFO', 'acmix_jax')

  stalled = []

  def wait():
    stalled.append(time.monotonic())
    _send_soon(signum)
    stall()

  with monkeypatch.context() as patch:
    _intercept(patch, split, before, wait)
    patch.setattr(reader, '_CLOSE_SECONDS', 0.5)
    # The input stalls until the test is over: that this returns is the proof.
    loop.run(tiny_run.config(), str(tmp_path))
  assert (
    time.monotonic() - stalled[0] < 30
  )  # With a checkpoint, without load 1.
  assert f'{name}: saved step {saved};' in caplog.text
  assert tiny_run.steps(tmp_path)[-1] == saved
  _check_resumed(tmp_path, straight)


def test_an_owed_evaluation_that_was_made_and_not_saved_has_one_line(
  tmp_path, monkeypatch, straight
):
  for split in ('eval', 'train'):
    with monkeypatch.context() as patch:
      before = {'eval': 2, 'train': 1}[split]
      _intercept(patch, split, before, lambda: _send(signal.SIGTERM))
      loop.run(tiny_run.config(), str(tmp_path))
  _check_resumed(tmp_path, straight)


@pytest.mark.parametrize('before', [1, 3])
def test_an_evaluation_is_left_for_the_resumed_training(
  tmp_path, monkeypatch, straight, before
):
  with monkeypatch.context() as patch:
    _intercept(patch, 'eval', before, lambda: _send(signal.SIGTERM))
    loop.run(tiny_run.config(), str(tmp_path))
    assert tiny_run.steps(tmp_path) == [4, 5]
    # Left again: the checkpoint is not written anew.
    loop.run(tiny_run.config(), str(tmp_path))
    assert tiny_run.steps(tmp_path) == [4, 5]
  assert all('eval/top1' not in line for line in tiny_run.lines(tmp_path))
  _check_resumed(tmp_path, straight)


def test_a_stall_is_said_and_again_when_it_has_doubled(
  tmp_path, monkeypatch, caplog
):
  monkeypatch.setattr(reader, '_STALL_SECONDS', 0.5)
  _intercept(monkeypatch, 'train', 2, lambda: time.sleep(2))
  loop.run(tiny_run.config(num_steps=2), str(tmp_path))
  said = [text for text in caplog.messages if 'The input stalls' in text]
  seconds = [text.split(' for ')[1].split(' s.')[0] for text in said]
  # A busy machine may stall for longer than it was asked to.
  assert seconds[:2] == ['0.5', '1.0']


def test_a_second_ctrl_c_ends_the_process_at_once():
  before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
  with pytest.raises(KeyboardInterrupt), preemption.Preemption() as stop:
    _send(signal.SIGINT)
    with pytest.raises(preemption.StopRequested, match='Ctrl-C'):
      stop.check()
    _send(signal.SIGINT)
  after = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
  assert after == before


def test_an_error_of_the_input_passes_the_reader():
  class Failing:
    def __next__(self):
      raise TimeoutError('mount')

    def close(self):
      pass

  with pytest.raises(TimeoutError, match='mount'):
    next(reader.Reader(Failing(), preemption.Preemption()))


def test_a_worker_that_fails_while_it_is_started_ends_the_training(
  monkeypatch, stall
):
  monkeypatch.setattr(reader, '_OWING_SECONDS', 0.2)
  children = []

  class Starting:
    # Where Python starts a worker it waits for one that has ended already.
    def __next__(self):
      children.append(subprocess.Popen([sys.executable, '-c', 'exit(1)']))
      stall()

    def close(self):
      pass

  batches = reader.Reader(Starting(), preemption.Preemption())
  with pytest.raises(RuntimeError, match='below `if __name__'):
    next(batches)
  # The one who started it still learns how it ended.
  assert children[0].wait() == 1


# Holds a batch of a worker to its end; the worker stalls before the next one.
STALLED_WORKER = """
import os, signal, threading, time
import numpy as np
from acmix_jax.data import pipeline, sources, transforms
from acmix_jax.train import preemption, reader

class Stalling(sources.LabelledImages):
  class_names = ('a',)

  def __len__(self):
    return 4

  def __getitem__(self, index):
    if index == 2:
      time.sleep(1000)
    image = np.zeros((1, 1, 3), np.uint8)
    return {'image': image, 'label': np.int32(0), 'name': str(index)}

reader._CLOSE_SECONDS = 0.5
with preemption.Preemption() as stop:
  batches = reader.Reader(
    pipeline.eval_batches(
      Stalling(), transforms.Decode(), batch_size=2, workers=1
    ),
    stop,
  )
  held = next(batches)
  threading.Timer(0.5, os.kill, [os.getpid(), signal.SIGTERM]).start()
  start = time.monotonic()
  try:
    next(batches)
  except preemption.StopRequested:
    batches.close()
print(time.monotonic() - start, flush=True)
time.sleep(0.5)  # A thread of grain frees the memory.
"""


def test_a_stalled_worker_is_ended_without_a_word():
  process = subprocess.Popen(
    [sys.executable, '-c', STALLED_WORKER],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  assert float(process.stdout.readline()) < 15
  _, errors = process.communicate(timeout=15)
  assert not errors
