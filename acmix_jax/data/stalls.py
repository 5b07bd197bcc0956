"""Warnings that name what has been read for very long, as on a dead mount."""

import contextlib
import logging
import threading
import time
from collections.abc import Iterator

logger = logging.getLogger(__name__)

WARN_AFTER = 30.0  # Seconds.
_CHECK_EVERY = 1.0  # Seconds.

# What is being read, and since when.
_reading: dict[object, tuple[str, float]] = {}
_start_lock = threading.Lock()
_watcher: threading.Thread | None = None


@contextlib.contextmanager
def watched(name: str) -> Iterator[None]:
  """Logs one warning with the name if the body takes over `WARN_AFTER`."""
  _start_watcher()
  key = object()
  _reading[key] = name, time.monotonic()
  try:
    yield
  finally:
    del _reading[key]


def _start_watcher() -> None:
  global _watcher
  if _watcher is None:
    with _start_lock:
      if _watcher is None:
        _watcher = threading.Thread(target=_watch, daemon=True)
        _watcher.start()


def _watch() -> None:
  warned = set()
  while True:
    time.sleep(_CHECK_EVERY)
    now = time.monotonic()
    late = {x for x in list(_reading.values()) if now - x[1] > WARN_AFTER}
    for name, start in late - warned:
      logger.warning(
        'Still reading %s after %.0f seconds; is its disk or mount there?',
        name,
        now - start,
      )
    warned = late
