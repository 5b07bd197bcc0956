"""A workdir belongs to one training at a time."""

import contextlib
import os
import pathlib
import socket
import subprocess
import sys
import threading
import time

import pytest

from acmix_jax.train import loop, workdir
from tests.train import tiny_run

_ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.usefixtures('tiny_model')
def test_a_second_training_is_refused_at_once_and_an_evaluation_is_not(
  tmp_path, straight
):
  with workdir.Lock(tmp_path):
    begin = time.monotonic()
    with pytest.raises(
      workdir.InUseError,
      match=f'{tmp_path} is in use by process {os.getpid()} on host '
      f'{socket.gethostname()}, since 20.* UTC',
    ):
      loop.run(tiny_run.config(), str(tmp_path))
    assert time.monotonic() - begin < 2
    config = tiny_run.config()
    config.init_from = str(straight)
    loop.run(config, str(tmp_path), 'eval')
  loop.run(tiny_run.config(num_steps=1), str(tmp_path))


def test_a_worker_that_runs_the_program_again_is_told_of_the_guard(tmp_path):
  program = (
    'import pathlib, sys\n'
    'from acmix_jax.train import workdir\n'
    'workdir.Lock(pathlib.Path(sys.argv[1])).__enter__()'
  )
  with workdir.Lock(tmp_path):
    child = subprocess.run(
      [sys.executable, '-c', program, str(tmp_path)],
      cwd=_ROOT,
      capture_output=True,
      text=True,
    )
  assert 'It started this one: guard its call by `if __name__' in child.stderr


def test_a_workdir_that_was_given_back_is_free(tmp_path, caplog):
  for _ in range(2):
    with workdir.Lock(tmp_path / 'made'):
      assert (tmp_path / 'made' / 'lock').exists()
    assert not list((tmp_path / 'made').iterdir())
  assert not caplog.records


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path, caplog):
  program = (
    'import os, pathlib, sys\n'
    'from acmix_jax.train import workdir\n'
    'workdir.Lock(pathlib.Path(sys.argv[1])).__enter__()\n'
    'os.kill(os.getpid(), 9)'
  )
  killed = subprocess.Popen(
    [sys.executable, '-c', program, str(tmp_path)], cwd=_ROOT
  )
  assert killed.wait() == -9
  with workdir.Lock(tmp_path):
    assert f'from process {killed.pid} on host' in caplog.text
    assert f'process {os.getpid()} ' in (tmp_path / 'lock').read_text()


@pytest.mark.parametrize(
  'path, message',
  [
    ('', 'workdir is empty'),
    ('gs://bucket/run', 'mount buckets'),
    (pathlib.Path('gs://bucket/run'), 'mount buckets'),
    (__file__, 'workdir_test.py is a file and no folder'),
    (f'{__file__}/run', 'workdir_test.py is a file and no folder'),
  ],
)
def test_what_is_no_folder_is_refused(path, message):
  with pytest.raises(ValueError, match=message):
    workdir.resolve(path)


def test_a_folder_may_be_given_in_any_form(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  monkeypatch.chdir(tmp_path)
  for path in ('~/a', pathlib.Path('~/a'), 'a', tmp_path / 'a'):
    assert workdir.resolve(path) == tmp_path / 'a'


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
  def refuse(*args, **options):
    raise OSError(30, 'Read-only file system')

  monkeypatch.setattr(pathlib.Path, 'mkdir', refuse)
  with (
    pytest.raises(ValueError, match='cannot be written: .* Read-only file'),
    workdir.Lock(tmp_path / 'run'),
  ):
    pass


@contextlib.contextmanager
def _signs_of(path):
  """Renews the file's time as a training on another machine does."""
  done = threading.Event()

  def renew():
    while not done.wait(0.05):
      os.utime(path)

  thread = threading.Thread(target=renew)
  thread.start()
  yield
  done.set()
  thread.join()


@pytest.mark.parametrize('garbage', [b'', b'\xff\xfe'])
def test_a_lock_of_another_machine_counts_while_it_gives_signs(
  tmp_path, caplog, monkeypatch, garbage
):
  monkeypatch.setattr(workdir, 'SIGN_SECONDS', 0.1)
  monkeypatch.setattr(workdir, 'WAIT_SECONDS', 1)
  path = tmp_path / 'lock'
  path.write_bytes(b'process 7 on host elsewhere, since 2026' + garbage)
  with (
    _signs_of(path),
    pytest.raises(workdir.InUseError, match='process 7 on host elsewhere'),
    workdir.Lock(tmp_path),
  ):
    pass
  assert path.exists() and 'Taking over' not in caplog.text
  with workdir.Lock(tmp_path):
    assert 'Taking over' in caplog.text


def test_a_lock_gives_signs(tmp_path, monkeypatch):
  monkeypatch.setattr(workdir, 'SIGN_SECONDS', 0.01)
  with workdir.Lock(tmp_path):
    os.utime(tmp_path / 'lock', (0, 0))
    deadline = time.monotonic() + 5
    while (tmp_path / 'lock').stat().st_mtime == 0:
      assert time.monotonic() < deadline
      time.sleep(0.01)


def test_signs_count_where_the_system_has_no_locks(tmp_path, monkeypatch):
  def unsupported(file, operation):
    raise OSError('not supported')

  monkeypatch.setattr(workdir.fcntl, 'flock', unsupported)
  monkeypatch.setattr(workdir, 'SIGN_SECONDS', 0.1)
  monkeypatch.setattr(workdir, 'WAIT_SECONDS', 1)
  first, second = workdir.Lock(tmp_path), workdir.Lock(tmp_path)
  with first, pytest.raises(workdir.InUseError):
    second.__enter__()
  with second:
    pass
