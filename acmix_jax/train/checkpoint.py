"""Checkpoints: saved beside the training, restored on any devices.

They are written by Orbax's CheckpointManager (its v0 API); weights/files.py
reads the variables of one. A save is atomic: a process killed within one leaves
the previous checkpoint.
"""

import math
import pathlib

import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from acmix_jax.train import state as state_lib
from acmix_jax.weights import files


class Checkpoints:
  """The checkpoints of a workdir: the latest ones and the best ones.

  A checkpoint holds the `TrainState`, the metrics of an evaluation made at its
  step, if there was one, the window of metrics not yet logged, and whether the
  training was interrupted before an evaluation that was due.
  """

  def __init__(
    self,
    workdir: pathlib.Path,
    *,
    keep_latest: int,
    keep_best: int,
    best_metric: str,
  ):
    """Opens, or creates, the folder `checkpoints` of a workdir.

    Args:
      workdir: absolute path; Orbax fails on others, in a background thread.
      keep_latest: newest checkpoints that stay, at least 1.
      keep_best: checkpoints of the highest `best_metric` that stay besides.
      best_metric: name of an evaluation metric; larger is better.

    Raises:
      ValueError: a count is out of range.
    """
    if keep_latest < 1 or keep_best < 0:
      raise ValueError(
        f'checkpoint.keep_latest={keep_latest} must be at least 1 and '
        f'checkpoint.keep_best={keep_best} at least 0.'
      )
    self._best_metric = best_metric
    self._directory = workdir / files.CHECKPOINTS
    # Orbax stores metrics only where best_fn is set, and keeps the latest only
    # by a policy: both are needed.
    self._manager = ocp.CheckpointManager(
      self._directory,
      options=ocp.CheckpointManagerOptions(
        best_fn=files.quality,
        preservation_policy=checkpoint_managers.AnyPreservationPolicy(
          [
            checkpoint_managers.LatestN(keep_latest),
            checkpoint_managers.BestN(
              get_metric_fn=files.quality,
              n=keep_best,
              keep_checkpoints_without_metrics=False,
            ),
          ]
        ),
      ),
    )

  def latest_step(self) -> int | None:
    """Step of the newest checkpoint, None without any."""
    return self._manager.latest_step()

  def save(
    self,
    state: state_lib.TrainState,
    step: int,
    window: dict[str, list[float]],
    metrics: dict[str, float] | None = None,
    *,
    interrupted: bool = False,
  ) -> None:
    """Starts to save; the state may be overwritten at once.

    Args:
      state: state after `step` updates.
      step: step of the state, given so that it need not be read from a device.
      window: metrics not yet logged, see `metrics_window.Window.read`.
      metrics: results of an evaluation of this state, if there was one.
      interrupted: whether an evaluation of this state is due and not made.

    Raises:
      KeyError: an evaluation without the metric that ranks checkpoints.
      RuntimeError: a checkpoint of this or a later step exists.
    """
    # Under one name for all tasks, so that the best is found without the task.
    if metrics and not math.isnan(metrics[self._best_metric]):
      metrics = metrics | {files.QUALITY: metrics[self._best_metric]}
    saved = self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(state),
        progress=ocp.args.JsonSave(
          {'window': window, 'interrupted': interrupted}
        ),
      ),
      metrics=metrics or {},
    )
    if not saved:
      raise RuntimeError(
        f'No checkpoint was saved at step {step}: {self._directory} holds '
        f'step {self.latest_step()} already. Choose another workdir.'
      )

  def restore(
    self, step: int, shapes: state_lib.TrainState
  ) -> tuple[state_lib.TrainState, dict[str, list[float]], bool]:
    """(state, window, interrupted) as they were saved.

    Args:
      step: step of a checkpoint.
      shapes: the state as `jax.ShapeDtypeStruct` with shardings, whose devices
        need not be the ones that saved it.
    """
    restored = self._manager.restore(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardRestore(shapes),
        progress=ocp.args.JsonRestore(),
      ),
    )
    progress = restored.progress
    return restored.state, progress['window'], progress['interrupted']

  def close(self) -> None:
    """Waits until everything is saved."""
    self._manager.close()
