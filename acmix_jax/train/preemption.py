"""SIGTERM and Ctrl-C: the requests to save and stop."""

import os
import signal
import time

import jax
from jax.experimental import multihost_utils

from acmix_jax.train import processes

# How long an input may stall once one of several processes got SIGTERM.
_GRACE_SECONDS = 10


class StopRequested(Exception):
  """The training shall save and stop; the message names the request."""


class Preemption:
  """Context in which SIGTERM and Ctrl-C ask for a stop of the training.

  A second Ctrl-C ends the process at once.

  Where `jax.distributed` runs, its own handler tells all processes of SIGTERM,
  and they agree on a call of `check`; a process that still waits for its input
  then cannot stop, for the others have begun the update without it: if the
  input stalls, all end without saving (`check_stalled`). Elsewhere this class
  handles the signal. It must not do both: its handler would replace that of
  jax. Outside of the context nothing is handled and nothing raised.
  """

  def __init__(self):
    self._request = None
    self._calls = 0
    self._distributed = False
    self._previous = {}
    self._noticed = None

  def __enter__(self):
    self._distributed = jax.distributed.is_initialized()
    handlers = {signal.SIGINT: self._interrupt}
    if not self._distributed:
      handlers[signal.SIGTERM] = self._terminate
    for signum, handler in handlers.items():
      self._previous[signum] = signal.signal(signum, handler)
    return self

  def _terminate(self, signum, frame):
    self._request = 'SIGTERM'

  def _interrupt(self, signum, frame):
    signal.signal(signal.SIGINT, self._previous[signal.SIGINT])
    if self._distributed:
      os.kill(os.getpid(), signal.SIGTERM)
    else:
      self._request = 'Ctrl-C'

  def check_here(self) -> None:
    """Raises StopRequested if this process can stop alone, and shall."""
    if self._request:
      raise StopRequested(self._request)

  def check_stalled(self) -> None:
    """Raises TimeoutError if the others shall stop and wait for this process.

    For a process of several whose input stalls; it may ask at any time.
    """
    if not self._distributed:
      return
    if self._noticed is None:
      if processes.one_got_sigterm():
        self._noticed = time.monotonic()
    elif time.monotonic() - self._noticed > _GRACE_SECONDS:
      raise TimeoutError(
        'SIGTERM came while the input of this process stalls, so the last '
        'updates are not saved; run again to resume from the latest checkpoint.'
      )

  def check(self) -> None:
    """Raises StopRequested on all processes, in the same call of each.

    All processes must call this at the same points of the training.
    """
    self._calls += 1
    if self._distributed and multihost_utils.reached_preemption_sync_point(
      self._calls
    ):
      raise StopRequested('SIGTERM')
    self.check_here()

  def __exit__(self, *exception):
    for signum, handler in self._previous.items():
      signal.signal(signum, handler)
