"""Batches drawn in a way that lets a training be stopped while it waits."""

import gc
import logging
import multiprocessing
import os
import queue
import threading
import time
from collections.abc import Sequence

import numpy as np

from acmix_jax import tasks
from acmix_jax.train import preemption, processes

logger = logging.getLogger(__name__)

# A wait this long is said, and again whenever it has doubled.
_STALL_SECONDS = 30
# How long a worker that ended may still owe its error, or its batch.
_OWING_SECONDS = 5
# How long threads and workers may take to end by themselves, and once killed.
_CLOSE_SECONDS = 5
_KILLED_SECONDS = 5


class Reader:
  """Iterator over batches that hears requests to stop while it waits.

  A file that never answers, on a dead mount or in a pipe, blocks the thread
  that reads it for good. So another thread draws each batch when it is asked
  for, never ahead; Python does not wait for it at its end.
  """

  def __init__(self, batches: tasks.Batches, stop: preemption.Preemption):
    """Takes over the batches.

    Args:
      batches: closed with this.
      stop: looked at twice a second while a batch is awaited.
    """
    self._batches = batches
    self._stop = stop
    self._requests, self._results = queue.SimpleQueue(), queue.SimpleQueue()
    self._others = set(multiprocessing.active_children())
    self._workers = set()
    # Whether a child that has failed must be a worker.
    self._starting = not _a_child_failed()
    self._closed = False
    self._drawing = threading.Thread(
      target=self._draw, name='batches', daemon=True
    )
    self._drawing.start()

  @property
  def damaged(self) -> int:
    """See `tasks.Batches`."""
    return self._batches.damaged

  @property
  def names(self) -> Sequence[str]:
    """See `tasks.Batches`."""
    return self._batches.names

  def __iter__(self):
    return self

  def __next__(self) -> dict[str, np.ndarray]:
    """Draws the next batch.

    Raises:
      StopRequested: before there was one; no more can be drawn.
      StopIteration: there is none.
      RuntimeError: a worker of the input ended.
      TimeoutError: the input stalls, and this process shall stop and cannot
        alone.
    """
    self._stop.check_here()
    self._requests.put(True)
    start, said, ended = time.monotonic(), _STALL_SECONDS, None
    while True:
      try:
        batch, error = self._results.get(timeout=0.5)
      except queue.Empty:
        waited = time.monotonic() - start
      else:
        break
      self._stop.check_here()
      self._stop.check_stalled()
      ended = ended or (self._a_worker_failed() and waited)
      if ended and waited - ended > _OWING_SECONDS:
        raise RuntimeError(
          'A worker of the input ended; its error is above. A program that '
          'trains with data.workers must call loop.run below '
          "`if __name__ == '__main__':`, as workers run the rest of it again."
        )
      if waited >= said:
        processes.say(
          f'The input stalls: no batch for {said} s. Are all files in reach?'
        )
        said *= 2
    self._starting = False
    if error is not None:
      raise error
    return batch

  def _draw(self):
    while self._requests.get():
      try:
        self._results.put((next(self._batches), None))
      except BaseException as error:
        if not self._closed:
          self._results.put((None, error))

  def _a_worker_failed(self) -> bool:
    if any(worker.exitcode for worker in self._started_workers()):
      return True
    # Python waits for a worker to read what it is sent, and does not list it
    # before, also if it has ended: the pipe is open at both ends here.
    return self._starting and _a_child_failed()

  def _started_workers(self) -> set[multiprocessing.Process]:
    # Kept, as Python forgets a worker that ended once it is asked.
    self._workers.update(multiprocessing.active_children())
    return self._workers - self._others

  def close(self) -> None:
    """Ends workers, and threads but for those that a file keeps waiting."""
    self._closed = True
    self._requests.put(False)
    # Another thread, as closing may wait for these.
    closing = threading.Thread(target=self._batches.close, daemon=True)
    closing.start()
    closing.join(_CLOSE_SECONDS)
    workers = self._started_workers()
    if not workers:
      return
    for worker in workers:
      # It stalls if it is still there, and hears no other signal. What else
      # the program has started meanwhile is not ours.
      if worker.name.startswith('grain'):
        worker.kill()
    closing.join(_KILLED_SECONDS)
    self._drawing.join(_KILLED_SECONDS)
    # Grain shares memory with workers, which must be given back before Python
    # ends; the error that ends an iterator keeps the last batch in a cycle.
    gc.collect()


def _a_child_failed() -> bool:
  """Whether a process that this one started has failed, and none has waited."""
  try:
    ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
  except (AttributeError, ChildProcessError):  # No such call; no children.
    return False
  return ended is not None and ended.si_status != 0
