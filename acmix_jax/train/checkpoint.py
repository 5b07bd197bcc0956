"""Checkpoints: saved beside the training, restored on any devices.

They are written by Orbax's CheckpointManager (its v0 API); weights/files.py
reads the variables of one. A save is atomic: a process killed within one leaves
the previous checkpoint. What happens to the files later is found by their
checksums, see weights/manifest.py: damaged checkpoints are set aside, and the
newest that is whole is restored.
"""

import logging
import math
import pathlib
from concurrent import futures
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from acmix_jax.train import description as description_lib
from acmix_jax.train import processes, workdir
from acmix_jax.train import state as state_lib
from acmix_jax.weights import files, manifest, names

logger = logging.getLogger(__name__)


class Restored(NamedTuple):
  """A checkpoint as it was saved.

  Attributes:
    step: Step of the state.
    state: State after this step.
    window: Metrics not yet logged.
    interrupted: Whether an evaluation of the state is due and not made.
  """

  step: int
  state: state_lib.TrainState
  window: dict[str, list[float]]
  interrupted: bool


class Checkpoints:
  """The checkpoints of a workdir: the latest ones and the best ones.

  A checkpoint holds the `TrainState`, the metrics of an evaluation made at its
  step, if there was one, the window of metrics not yet logged, and whether the
  training was interrupted before an evaluation that was due.
  """

  def __init__(
    self,
    directory: pathlib.Path,
    *,
    keep_latest: int,
    keep_best: int,
    best_metric: str,
    description: dict[str, Any],
  ):
    """Opens, or creates, the folder `checkpoints` of a workdir.

    Checkpoints that are damaged are renamed to STEP.damaged-1 (or -2, ...), so
    that their steps can be saved again.

    Args:
      directory: the workdir, an absolute path; Orbax fails on others, in a
        background thread.
      keep_latest: newest checkpoints that stay, at least 1.
      keep_best: checkpoints of the highest `best_metric` that stay besides.
      best_metric: name of an evaluation metric; larger is better.
      description: kept with each checkpoint, see `tasks.Task.description`.

    Raises:
      ValueError: a count is out of range.
      DamagedError: all checkpoints are damaged; they are left as they are.
    """
    if keep_latest < 1 or keep_best < 0:
      raise ValueError(
        f'checkpoint.keep_latest={keep_latest} must be at least 1 and '
        f'checkpoint.keep_best={keep_best} at least 0.'
      )
    self._best_metric = best_metric
    self._description = description
    self._directory = directory / files.CHECKPOINTS
    processes.by_process_0(self._set_damaged_aside)
    # Checksums are computed while the training goes on.
    self._background = futures.ThreadPoolExecutor(1, 'checksums')
    self._saving = None
    # Orbax stores metrics only where best_fn is set, and keeps the latest only
    # by a policy: both are needed.
    self._manager = _Manager(
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

  def _set_damaged_aside(self):
    """Renames damaged checkpoints, before Orbax reads them."""
    damaged, good = {}, False
    for path in files.checkpoints(self._directory):
      try:
        # Without a manifest only restoring can tell, see `restore_latest`.
        manifest.check(path)
        files.metrics(path)
        good = True
      except manifest.DamagedError as error:
        damaged[path] = error
    _set_aside(damaged, good)

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
    self._finish_saving()
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
        description=ocp.args.JsonSave(self._description),
      ),
      metrics=metrics or {},
    )
    if not saved:
      raise RuntimeError(
        f'No checkpoint was saved at step {step}: {self._directory} holds '
        f'step {self.latest_step()} already. Choose another workdir.'
      )
    self._saving = self._background.submit(self._seal, step)

  def _seal(self, step):
    """Writes the checksums of a checkpoint once it is saved."""
    self._manager.wait_until_finished()
    if jax.process_index() == 0:
      manifest.write(self._directory / str(step))

  def _finish_saving(self):
    if self._saving is not None:
      self._saving.result()
      self._saving = None

  def restore_latest(self, shapes: state_lib.TrainState) -> Restored | None:
    """Restores the newest checkpoint that is whole, None without any.

    Args:
      shapes: the state as `jax.ShapeDtypeStruct` with shardings, whose devices
        need not be the ones that saved it.

    Raises:
      DamagedError: no checkpoint can be restored.
      ValueError: the data has other classes than the checkpoint, or its state
        is another one than the config makes.
    """
    restored, damaged = None, {}
    for step in sorted(self._manager.all_steps(), reverse=True):
      try:
        restored = self._restore(step, shapes)
        break
      # What Orbax raises depends on the damage.
      except Exception as error:
        path = self._directory / str(step)
        if isinstance(error, _UnfitError) or (path / manifest.NAME).exists():
          raise
        damaged[path] = manifest.DamagedError(
          f'The checkpoint {path} cannot be restored: {error}'
        )
    good = restored is not None
    if damaged:
      processes.by_process_0(lambda: _set_aside(damaged, good))
      self._manager.reload()
    if good:
      path = self._directory / str(restored.step)
      saved = files.load_description(path)
      description_lib.check_classes(saved, self._description, path)
      description_lib.note_images(saved, self._description, path)
    return restored

  def _restore(self, step, shapes):
    path = self._directory / str(step)
    _check_fits(files.saved_shapes(path), shapes, path)
    restored = self._manager.restore(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardRestore(shapes),
        progress=ocp.args.JsonRestore(),
      ),
    )
    progress = restored.progress
    return Restored(
      step, restored.state, progress['window'], progress['interrupted']
    )

  def close(self) -> None:
    """Waits until everything is saved."""
    try:
      self._finish_saving()
    finally:
      self._background.shutdown()
      self._manager.close()


class _Manager(ocp.CheckpointManager):
  """Never asks whether to stop.

  The loop asks, once at each point, and processes agree by the number of the
  call. A question between these, with the number of a step, would disturb it.
  """

  def reached_preemption(self, step: int) -> bool:
    return False


class _UnfitError(ValueError):
  """A whole checkpoint of another state."""


def _check_fits(saved, shapes, path):
  wanted = {
    jax.tree_util.keystr(key, simple=True, separator='/'): leaf
    for key, leaf in jax.tree_util.tree_leaves_with_path(shapes)
  }
  problems = names.listing(
    {
      'missing': wanted.keys() - saved.keys(),
      'unknown': saved.keys() - wanted.keys(),
      'of another shape or type': [
        f'{name} {saved[name].dtype}{list(saved[name].shape)}, the config makes'
        f' {wanted[name].dtype}{list(wanted[name].shape)}'
        for name in wanted.keys() & saved.keys()
        if (saved[name].shape, saved[name].dtype)
        != (wanted[name].shape, wanted[name].dtype)
      ],
    }
  )
  if problems:
    raise _UnfitError(
      f'{path} holds another state than the config makes.\n{problems}\n'
      'Choose the config it was made with, or another workdir.'
    )


def _set_aside(
  damaged: dict[pathlib.Path, manifest.DamagedError], good: bool
) -> None:
  """Renames damaged checkpoints and says so.

  Args:
    damaged: what is wrong with each.
    good: whether there is one besides that is not damaged.

  Raises:
    DamagedError: there is none; nothing is renamed, or the next training would
      begin anew as if there had never been one.
  """
  if damaged and not good:
    problems = '\n'.join(map(str, damaged.values()))
    raise manifest.DamagedError(
      f'No checkpoint can be restored; nothing was changed.\n{problems}\n'
      'Put a copy in their place, or choose another workdir.'
    )
  for path, error in damaged.items():
    target = workdir.move_aside(path)
    logger.warning('%s\nIt is kept as %s.', error, target)
