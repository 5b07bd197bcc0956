"""Batches drawn in a way that lets a training be stopped while it waits."""

import logging
import threading
import time
from concurrent import futures

import numpy as np

from acmix_jax import tasks
from acmix_jax.train import preemption

logger = logging.getLogger(__name__)

# A wait this long is said, and again whenever it has doubled.
_STALL_SECONDS = 30
_CLOSE_SECONDS = 5


class Reader:
  """Iterator over batches that hears requests to stop while it waits.

  A file that never answers, on a dead mount or in a pipe, blocks the thread
  that reads it for good. So another thread draws each batch when it is asked
  for, never ahead.
  """

  def __init__(self, batches: tasks.Batches, stop: preemption.Preemption):
    """Takes over the batches.

    Args:
      batches: closed with this.
      stop: looked at twice a second while a batch is awaited.
    """
    self._batches = batches
    self._stop = stop
    self._thread = futures.ThreadPoolExecutor(1, 'batches')

  @property
  def damaged(self) -> int:
    """See `tasks.Batches`."""
    return self._batches.damaged

  def __iter__(self):
    return self

  def __next__(self) -> dict[str, np.ndarray]:
    """Draws the next batch.

    Raises:
      StopRequested: before there was one; no more can be drawn.
      StopIteration: there is none.
    """
    self._stop.check_here()
    batch = self._thread.submit(next, self._batches)
    start, said = time.monotonic(), _STALL_SECONDS
    while not futures.wait([batch], timeout=0.5).done:
      self._stop.check_here()
      if time.monotonic() - start >= said:
        logger.warning(
          'The input stalls: no batch for %d s. Are all files in reach?', said
        )
        said *= 2
    return batch.result()

  def close(self) -> None:
    """Ends threads and workers, but for those that a file keeps waiting."""
    # Another thread, as closing may wait for these.
    closing = threading.Thread(target=self._batches.close, daemon=True)
    closing.start()
    closing.join(_CLOSE_SECONDS)
    self._thread.shutdown(wait=False)
