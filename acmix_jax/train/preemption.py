"""SIGTERM, by which a machine announces that it is taken away."""

import signal

import jax
from jax.experimental import multihost_utils


class Preemption:
  """Context in which SIGTERM asks for a stop instead of ending the process.

  Where `jax.distributed` runs, its own handler tells all processes, and they
  agree on a step. Elsewhere this class handles the signal. It must not do both:
  its handler would replace that of jax.
  """

  def __enter__(self):
    self._requested = False
    self._distributed = jax.distributed.is_initialized()
    if not self._distributed:
      self._previous = signal.signal(signal.SIGTERM, self._request)
    return self

  def _request(self, signum, frame):
    self._requested = True

  def reached(self, step: int) -> bool:
    """Whether to stop after this step; to be called once for every step."""
    if self._distributed:
      return multihost_utils.reached_preemption_sync_point(step)
    return self._requested

  def __exit__(self, *exception):
    if not self._distributed:
      signal.signal(signal.SIGTERM, self._previous)
