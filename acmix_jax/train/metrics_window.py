"""The metrics of all steps since the last log line."""

import math
from collections.abc import Sequence

import jax

# Steps that the host may be ahead of the devices. With two the devices never
# idle, and few batches wait in their memory.
MAX_STEPS_AHEAD = 2


class NonFiniteError(ArithmeticError):
  """A loss or a gradient norm is not a finite number.

  Attributes:
    names: Examples of the update, those of this process.
  """

  def __init__(self, message: str, names: Sequence[str] = ()):
    super().__init__(message)
    self.names = names


class Window:
  """Metrics of every step since the last log line.

  They stay on the devices until they are read. A checkpoint stores the result
  of `read`, so that the log lines after a resume are those of a training that
  was never stopped.
  """

  def __init__(self, step: int, values: dict[str, list[float]] | None = None):
    """Starts after `step`, with the values of steps up to it, if any."""
    self._step = step
    self._values = values or {}
    self._pending = []

  def add(
    self, metrics: dict[str, jax.Array], names: Sequence[str] = ()
  ) -> None:
    """Adds the metrics of the next step.

    Args:
      metrics: scalars on the devices.
      names: names of the step's examples, see `tasks.Batches`.
    """
    self._pending.append((metrics, names))
    if len(self._pending) > MAX_STEPS_AHEAD:
      jax.block_until_ready(self._pending[-MAX_STEPS_AHEAD - 1][0])

  def read(self) -> dict[str, list[float]]:
    """Waits for all steps and returns a copy of their values, by name.

    Raises:
      NonFiniteError: a loss or a gradient norm is not finite.
    """
    for metrics, names in jax.device_get(self._pending):
      self._step += 1
      for name in ('loss', 'grad_norm'):
        if not math.isfinite(metrics[name]):
          raise NonFiniteError(
            f'{name} is {float(metrics[name])} at step {self._step}', names
          )
      for name, value in metrics.items():
        self._values.setdefault(name, []).append(float(value))
    self._pending = []
    return {name: list(values) for name, values in self._values.items()}

  def flush(self) -> dict[str, float]:
    """Means over the window, which is then emptied."""
    values = self.read()
    self._values = {}
    return {name: math.fsum(v) / len(v) for name, v in values.items()}
