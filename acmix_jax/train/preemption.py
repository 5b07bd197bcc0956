"""SIGTERM and Ctrl-C: the requests to save and stop."""

import os
import signal

import jax
from jax.experimental import multihost_utils


class StopRequested(Exception):
  """The training shall save and stop; the message names the request."""


class Preemption:
  """Context in which SIGTERM and Ctrl-C ask for a stop of the training.

  A second Ctrl-C ends the process at once.

  Where `jax.distributed` runs, its own handler tells all processes of SIGTERM,
  and they agree on a call of `check`; a process that still waits for its input
  then cannot stop, for the others have begun the update without it. Elsewhere
  this class handles the signal. It must not do both: its handler would replace
  that of jax. Outside of the context nothing is handled and nothing raised.
  """

  def __init__(self):
    self._request = None
    self._calls = 0
    self._distributed = False
    self._previous = {}

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
