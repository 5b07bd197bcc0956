"""What process 0 finds out or does for all processes of a training."""

import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


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
