"""What process 0 finds out for all processes, and how an error ends all."""

import contextlib
import itertools
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

# jax has no public way to tell processes something that wait for a computation.
from jax._src import distributed
from jax.experimental import multihost_utils

logger = logging.getLogger(__name__)

_FAILURE = 'acmix_jax/failure'
_SAID = 'acmix_jax/said'
# Where the service of jax.distributed notes that a process got SIGTERM.
_PREEMPTION = 'RECEIVED_PREEMPTION_NOTICE'
_POLL_SECONDS = 1
_MEETING_SECONDS = 3600
# How far apart processes meet an error that they share.
_SHARED_SECONDS = 3

_meetings = itertools.count()


def wait_for_all() -> None:
  """Waits, without a computation, until all processes have called this.

  They must call it equally often.

  Raises:
    jax.errors.JaxRuntimeError: one of them did not come within an hour.
  """
  distributed.global_state.client.wait_at_barrier(
    f'acmix_jax/meeting/{next(_meetings)}', _MEETING_SECONDS * 1000
  )


def from_process_0(value: Any) -> Any:
  """The value of process 0, on every process.

  Args:
    value: what JSON can hold, exactly; other processes may give anything.
  """
  text = np.frombuffer(json.dumps(value).encode(), np.uint8)
  # What is sent must have one shape on all processes, so the size goes first.
  size = int(multihost_utils.broadcast_one_to_all(np.int32(text.size)))
  text = np.resize(text, size)
  return json.loads(bytes(multihost_utils.broadcast_one_to_all(text)))


def from_all(value: Any) -> list[Any]:
  """The values of all processes, by their number, on every process.

  Args:
    value: what JSON can hold, exactly.
  """
  text = np.frombuffer(json.dumps(value).encode(), np.uint8)
  # What is gathered must have one shape on all processes.
  sizes = multihost_utils.process_allgather(np.int32(text.size))
  texts = multihost_utils.process_allgather(np.resize(text, sizes.max()))
  return [
    json.loads(bytes(row[:size]))
    for row, size in zip(texts, sizes, strict=True)
  ]


def by_process_0(function: Callable[[], Any]) -> Any:
  """Calls a function on process 0 alone, whose result or error all get.

  All processes call this at the same point; none waits for one that failed.

  Args:
    function: returns what JSON can hold.

  Raises:
    RuntimeError: the function failed; process 0 raises the error itself.
  """
  result = error = None
  if jax.process_index() == 0:
    try:
      result = function()
    except Exception as raised:
      error = raised
  result, message = from_process_0([result, error and str(error)])
  if error is not None:
    raise error
  if message is not None:
    raise RuntimeError(f'Process 0 failed: {message}')
  return result


def say(message: str) -> None:
  """Logs a warning on this process and, in `failing_together`, on all."""
  logger.warning('%s', message)
  if jax.distributed.is_initialized():
    index = jax.process_index()
    key = f'{_SAID}/{index}/{time.monotonic_ns()}'
    client = distributed.global_state.client
    client.key_value_set(key, f'Process {index}: {message}')


def one_got_sigterm() -> bool:
  """Whether a process of several has got SIGTERM, as jax noticed."""
  try:
    distributed.global_state.client.key_value_try_get(_PREEMPTION)
  except jax.errors.JaxRuntimeError:  # There is no notice.
    return False
  return True


def all_fail() -> bool:
  """Whether all processes have met an error, and can go on together.

  They have where each calls this within a few seconds, as after `by_process_0`.
  Of a process that does not, the part of a computation may be missing. A
  training calls it once.
  """
  if not jax.distributed.is_initialized():
    return True
  try:
    distributed.global_state.client.wait_at_barrier(
      'acmix_jax/all_fail', _SHARED_SECONDS * 1000
    )
  except jax.errors.JaxRuntimeError:
    return False
  return True


@contextlib.contextmanager
def failing_together() -> Iterator[None]:
  """Context in which an error of one process ends all processes.

  The others would wait for its part of a computation, for ever and where
  nothing can interrupt them. So each process has a thread that hears of the
  error through the service of `jax.distributed`, logs it and ends the process
  with status 1; the one that failed ends in the same way once it has told.
  A single process raises the error.
  """
  if not jax.distributed.is_initialized():
    yield
    return
  client, done = distributed.global_state.client, threading.Event()
  threading.Thread(target=_hear, args=(client, done), daemon=True).start()
  index = jax.process_index()
  try:
    yield
  except BaseException as error:
    done.set()
    message = f'Process {index} failed: {type(error).__name__}: {error}'
    try:
      client.key_value_set(_FAILURE, message)
      logger.exception('This ends all processes:')
    except jax.errors.JaxRuntimeError:
      # Another one failed first, and this error only follows from that.
      logger.error('%s', client.key_value_try_get(_FAILURE))
    _end()
  finally:
    done.set()


def _hear(client, done):
  own, heard = f'{_SAID}/{jax.process_index()}/', set()
  while not done.wait(_POLL_SECONDS):
    for key, message in client.key_value_dir_get(_SAID):
      if key not in heard and not key.startswith(own):
        logger.warning('%s', message)
      heard.add(key)
    try:
      message = client.key_value_try_get(_FAILURE)
    except jax.errors.JaxRuntimeError:  # There is none.
      continue
    if not done.is_set():
      logger.error('%s', message)
      _end()


def _end():
  # Others notice that a process has ended, and say so in other words: they
  # hear the reason before. The service itself ends with process 0.
  time.sleep(2 * _POLL_SECONDS * (2 if jax.process_index() == 0 else 1))
  logging.shutdown()
  os._exit(1)
