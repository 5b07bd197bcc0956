"""The folder of a training: one process 0 at a time, nothing damaged in it."""

import contextlib
import datetime
import fcntl
import itertools
import logging
import os
import pathlib
import re
import socket
import threading
import time

import jax

from acmix_jax.train import processes

logger = logging.getLogger(__name__)

# A training shows that it lives this often; on other machines it counts as dead
# after a wait without such a sign.
SIGN_SECONDS = 5
WAIT_SECONDS = 20


def resolve(workdir: str | os.PathLike) -> pathlib.Path:
  """The absolute path of a workdir, which need not exist; `~` is the home.

  Raises:
    ValueError: it cannot be a folder of a file system.
  """
  text = os.fspath(workdir)
  # pathlib makes gs:/bucket of gs://bucket.
  if re.match(r'\w{2,}:/', text):
    raise ValueError(
      f'workdir={text!r}: give a path of a file system; mount buckets '
      '(gcsfuse, Filestore) under one.'
    )
  if not text:
    raise ValueError('workdir is empty; give the path of a folder.')
  path = pathlib.Path(text).expanduser().absolute()
  for parent in (path, *path.parents):
    if parent.exists() and not parent.is_dir():
      raise ValueError(f'workdir={text!r}: {parent} is a file and no folder.')
  return path


def move_aside(path: pathlib.Path) -> pathlib.Path:
  """Renames what is damaged to PATH.damaged-1, or the next free number.

  Returns:
    The new path.
  """
  for number in itertools.count(1):
    target = path.with_name(f'{path.name}.damaged-{number}')
    if not target.exists():
      return path.rename(target)


class InUseError(RuntimeError):
  """Another training uses the workdir."""


class Lock:
  """Context in which no other training uses a workdir.

  The file `lock` of the workdir names the process that uses it. It also holds
  the lock of the operating system on this file, which ends with the process,
  however that ends: on the same machine a lock is stale if and only if this one
  is free. Other machines may not see it. They wait 20 s for the sign of life
  that the process gives every 5 s, a new time of the file; a lock without such
  a sign is stale. Stale locks are taken over.
  """

  def __init__(self, directory: pathlib.Path):
    """Does nothing yet; the folder is made if need be."""
    self._path = directory / 'lock'
    self._done = threading.Event()
    self._signs = threading.Thread(target=self._give_signs, daemon=True)

  def __enter__(self):
    """Locks on process 0, for all.

    Raises:
      InUseError: another training uses the workdir.
      ValueError: the workdir cannot be written. Other processes than 0 raise
        RuntimeErrors.
    """
    processes.by_process_0(self._acquire)
    return self

  def _acquire(self):
    try:
      self._path.parent.mkdir(parents=True, exist_ok=True)
      file, locked = _open_locked(self._path)
    except OSError as error:
      raise ValueError(
        f'workdir={str(self._path.parent)!r} cannot be written: {error}. Give '
        'a folder that process 0 may write to.'
      ) from error
    with contextlib.ExitStack() as stack:
      stack.enter_context(file)
      file.seek(0)
      holder = file.read(200)
      if locked is False or (holder and self._may_live(holder, locked)):
        remedy = 'Wait for it, stop it, or choose another workdir.'
        if holder.startswith(f'process {os.getppid()} on'):
          # A worker (data.workers) runs the main program again as it starts.
          remedy = (
            'It started this one: guard its call by `if __name__ == '
            "'__main__':`."
          )
        raise InUseError(
          f'{self._path.parent} is in use by {holder or "another process"}. '
          f'{remedy}'
        )
      if holder:
        logger.warning(
          'Taking over %s from %s, which ended without giving it back.',
          self._path.parent,
          holder,
        )
      now = datetime.datetime.now(datetime.UTC)
      file.truncate(0)
      file.write(
        f'process {os.getpid()} on host {socket.gethostname()}, since '
        f'{now:%Y-%m-%d %H:%M:%S} UTC'
      )
      file.flush()
      stack.pop_all()
    self._file = file
    self._signs.start()

  def _may_live(self, holder, locked):
    """Whether a process lives whose lock the system does not hold here."""
    if locked and f'on host {socket.gethostname()},' in holder:
      return False
    logger.info('Waiting %d s for a sign of life of %s.', WAIT_SECONDS, holder)
    seen, start = _changed(self._path), time.monotonic()
    while time.monotonic() - start < WAIT_SECONDS:
      time.sleep(min(1, SIGN_SECONDS))
      if _changed(self._path) != seen:
        return True
    return False

  def _give_signs(self):
    while not self._done.wait(SIGN_SECONDS):
      with contextlib.suppress(OSError):
        os.utime(self._path)

  def __exit__(self, *exception):
    if jax.process_index() == 0:
      self._done.set()
      self._signs.join()
      self._path.unlink(missing_ok=True)
      self._file.close()


def _open_locked(path):
  """The open file, and whether it is locked now; None: the system cannot."""
  while True:
    file = path.open('a+', errors='replace')
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      return file, False
    except OSError:
      return file, None
    # The holder may have removed the file since it was opened.
    with contextlib.suppress(FileNotFoundError):
      if os.path.samestat(os.fstat(file.fileno()), path.stat()):
        return file, True
    file.close()


def _changed(path):
  """Time of the last sign; opening a file asks a server for it anew."""
  with path.open() as file:
    return os.fstat(file.fileno()).st_mtime_ns
