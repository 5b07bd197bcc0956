"""Checkpoints: saved beside the training, restored on any devices.

Orbax's CheckpointManager (its v0 API) is used here and nowhere else. A save is
atomic: a process killed within one leaves the previous checkpoint.
"""

import logging
import math
import pathlib
import re
from typing import Any

import flax
import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from acmix_jax import weights
from acmix_jax.train import state as state_lib

logger = logging.getLogger(__name__)

DIRECTORY = 'checkpoints'


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

    quality = _quality(best_metric)
    self._directory = workdir / DIRECTORY
    # Orbax stores metrics only where best_fn is set, and keeps the latest only
    # by a policy: both are needed.
    self._manager = ocp.CheckpointManager(
      self._directory,
      options=ocp.CheckpointManagerOptions(
        best_fn=quality,
        preservation_policy=checkpoint_managers.AnyPreservationPolicy(
          [
            checkpoint_managers.LatestN(keep_latest),
            checkpoint_managers.BestN(
              get_metric_fn=quality,
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
      RuntimeError: a checkpoint of this or a later step exists.
    """
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


def find(path: pathlib.Path, best_metric: str) -> pathlib.Path:
  """The file or folder of weights that a path stands for.

  Args:
    path: a .safetensors file; a workdir, which stands for its best checkpoint
      (the latest where none was evaluated); or one checkpoint of a workdir,
      WORKDIR/checkpoints/STEP.
    best_metric: name of the evaluation metric that ranks checkpoints.

  Raises:
    ValueError: the path is none of these.
  """
  path = path.absolute()
  if path.suffix == '.safetensors' and path.is_file():
    return path
  if (path / 'state').is_dir():
    return path
  if (path / DIRECTORY).is_dir():
    with ocp.CheckpointManager(
      path / DIRECTORY,
      options=ocp.CheckpointManagerOptions(
        best_fn=_quality(best_metric), create=False
      ),
    ) as manager:
      step = manager.best_step()
    if step is not None:
      return path / DIRECTORY / str(step)
  raise ValueError(
    f'{path} is no .safetensors file, no checkpoint (WORKDIR/{DIRECTORY}/STEP) '
    'and no workdir with checkpoints.'
  )


def load_weights(path: pathlib.Path) -> dict[str, np.ndarray]:
  """Variables by name, e.g. 'params/stage1_block0/conv1/kernel'.

  Args:
    path: result of `find`. A .safetensors file holds such names; of a
      checkpoint with moving averages, these are read.
  """
  if path.suffix == '.safetensors':
    return _flatten(weights.load_weights(path))
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
    tree = checkpointer.metadata(path / 'state').item_metadata.tree
    # As numpy arrays: the devices that saved need not be there.
    state = checkpointer.restore(
      path / 'state',
      restore_args=jax.tree.map(
        lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree
      ),
    )
  variables = state.get('ema') or state
  return _flatten({'params': variables['params'], **variables['model_state']})


def assign_weights(
  variables: dict[str, Any],
  weights: dict[str, np.ndarray],
  replaceable: str | None,
) -> dict[str, Any]:
  """Puts weights in the place of variables, on the same devices.

  Args:
    variables: tree of arrays, or of `jax.ShapeDtypeStruct` with shardings.
    weights: result of `load_weights`.
    replaceable: regular expression of names that `weights` may lack, or hold in
      another shape: these variables stay as they are. None: there are none.

  Raises:
    ValueError: names or shapes disagree; the message has all of them.
  """
  old = _flatten(variables)
  fits = {
    name
    for name in old.keys() & weights.keys()
    if old[name].shape == weights[name].shape
  }

  def strict(names):
    return sorted(
      n for n in names if replaceable is None or not re.search(replaceable, n)
    )

  shapes = {
    name: f'{name} {weights[name].shape}, the model has {old[name].shape}'
    for name in (old.keys() & weights.keys()) - fits
  }
  problems = {
    'missing': strict(old.keys() - weights.keys()),
    'unknown': strict(weights.keys() - old.keys()),
    'of another shape': [shapes[name] for name in strict(shapes)],
  }
  if any(problems.values()):
    raise ValueError(
      'The weights do not fit the model. '
      + ' '.join(
        f'{len(names)} {kind}: {"; ".join(names)}.'
        for kind, names in problems.items()
        if names
      )
    )
  fresh = sorted(old.keys() - fits)
  if fresh:
    logger.info('Not in the weights, start afresh: %s.', ', '.join(fresh))
  new = {
    name: (
      jax.device_put(weights[name].astype(x.dtype), x.sharding)
      if name in fits
      else x
    )
    for name, x in old.items()
  }
  return flax.traverse_util.unflatten_dict(new, sep='/')


def _quality(best_metric: str):
  """Function that ranks metrics; no evaluation, or nan, comes last."""

  def quality(metrics):
    value = metrics.get(best_metric, -math.inf)
    return -math.inf if math.isnan(value) else value

  return quality


def _flatten(tree: dict) -> dict[str, Any]:
  return flax.traverse_util.flatten_dict(tree, sep='/')
