"""Variables in files: .safetensors, and the checkpoints of a training."""

import contextlib
import json
import logging
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors
from safetensors import numpy as safetensors_numpy

from acmix_jax.weights import manifest, names

logger = logging.getLogger(__name__)

# Folder of a workdir with its checkpoints, one folder a step.
CHECKPOINTS = 'checkpoints'
# Metric by which the checkpoints of every task are compared; larger is better.
QUALITY = 'quality'
# Folder of a checkpoint with its `TrainState`.
_STATE = 'state'
# File of a checkpoint with the description of its data.
_DESCRIPTION = 'description/metadata'
# File of a checkpoint with the results of its evaluation.
_METRICS = 'metrics/metrics'


def quality(metrics: Mapping[str, float]) -> float:
  """Rank of a checkpoint with these metrics; without an evaluation, the last.

  Args:
    metrics: what was saved with a checkpoint, {} without an evaluation.
  """
  return metrics.get(QUALITY, -math.inf)


def checkpoints(directory: pathlib.Path) -> list[pathlib.Path]:
  """The checkpoints in a folder, by step; damaged ones are among them.

  Args:
    directory: folder `CHECKPOINTS` of a workdir, which need not exist.
  """
  if not directory.is_dir():
    return []
  paths = [path for path in directory.iterdir() if path.name.isdigit()]
  return sorted(paths, key=lambda path: int(path.name))


def metrics(checkpoint: pathlib.Path) -> dict[str, float]:
  """What an evaluation of a checkpoint gave, {} without one.

  Raises:
    DamagedError: the file cannot be read.
  """
  return _read_json(checkpoint, _METRICS)


def _read_json(checkpoint, name):
  """The content of a file of a checkpoint, {} if it is missing."""
  try:
    return json.loads((checkpoint / name).read_text())
  except FileNotFoundError:
    return {}
  except ValueError as error:
    raise manifest.DamagedError(
      f'The checkpoint {checkpoint} is damaged: {name} cannot be read.'
    ) from error


def find(path: str | os.PathLike) -> pathlib.Path:
  """Finds the file or checkpoint that a path stands for.

  Args:
    path: a .safetensors file; one checkpoint of a workdir,
      WORKDIR/checkpoints/STEP; or a workdir, which stands for its best
      checkpoint, or the latest if none was evaluated. `~` is the home.

  Returns:
    The absolute path of a file, or of one checkpoint.

  Raises:
    DamagedError: the metrics of a checkpoint cannot be read.
    ValueError: the path is none of these.
  """
  path = pathlib.Path(path).expanduser().absolute()
  if (
    path.is_file()
    or (path / _STATE).is_dir()
    or (path / manifest.NAME).is_file()
  ):
    return path
  found = checkpoints(path / CHECKPOINTS)
  if not found:
    raise ValueError(
      f'{path} is no .safetensors file, no checkpoint '
      f'(WORKDIR/{CHECKPOINTS}/STEP) and no workdir with checkpoints.'
    )
  # The last of several that are equal.
  return max(reversed(found), key=lambda path: quality(metrics(path)))


def load_weights(
  path: str | os.PathLike, *, average: bool = True
) -> dict[str, Any]:
  """Reads the variables of a model, ready for `model.apply`.

    variables = acmix_jax.load_weights('resnet50_acmix.safetensors')
    logits = model.apply(variables, images)

  Args:
    path: a file of `save_weights` or of `python -m acmix_jax.tools.convert`, a
      checkpoint or a workdir; see `find`.
    average: whether of a checkpoint with moving averages these are read, as in
      evaluations, and not the variables that the last update left.

  Returns:
    {'params': ..., 'batch_stats': ...} of numpy arrays.

  Raises:
    DamagedError: the checkpoint is damaged.
    ValueError: nothing of this kind is there, or the file is of another format
      or holds other names.
  """
  path = find(path)
  if path.is_file():
    return _load_file(path)
  manifest.check(path)
  return _load_checkpoint(path, average)


def saved_shapes(checkpoint: pathlib.Path) -> dict[str, Any]:
  """What a checkpoint holds of a training's state: names to shape and dtype.

  Names read like 'params/head/kernel' and 'opt_state/1/trace/head/kernel'.
  """
  import jax
  import orbax.checkpoint as ocp

  with contextlib.closing(ocp.PyTreeCheckpointHandler()) as handler:
    tree = handler.metadata(checkpoint / _STATE).tree
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def load_description(path: str | os.PathLike) -> dict[str, Any]:
  """Reads what is kept with weights of the data they were trained on.

  Args:
    path: see `find`.

  Returns:
    What `tasks.Task.description` says, such as {'class_names': [...], 'images':
    1433}; {} if nothing was kept.

  Raises:
    DamagedError: the description cannot be read.
    ValueError: nothing of this kind is there, or the file is of another format.
  """
  path = find(path)
  if not path.is_file():
    return _read_json(path, _DESCRIPTION)
  with _naming_the_format(path), safetensors.safe_open(path, 'np') as file:
    return json.loads((file.metadata() or {}).get('description', '{}'))


def save_weights(
  path: str | os.PathLike,
  variables: dict[str, Any],
  description: Mapping[str, Any] | None = None,
) -> None:
  """Writes variables as a .safetensors file.

  Args:
    path: the file; one that exists is replaced in one step. `~` is the home.
    variables: nested dicts of arrays, stored as e.g. 'params/head/kernel'.
    description: what to keep of the data, see `load_description`.
  """
  path = pathlib.Path(path).expanduser()
  temporary = path.with_name(f'{path.name}.tmp')
  # The library writes the memory of an array, whatever the order of its axes.
  flat = {
    name: np.asarray(value, order='C')
    for name, value in names.flatten(variables).items()
  }
  safetensors_numpy.save_file(
    flat, temporary, {'description': json.dumps(description or {})}
  )
  temporary.replace(path)


def read_arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
  """Reads the arrays of a .safetensors file by their names.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: the file is of another format.
  """
  with _naming_the_format(path):
    return safetensors_numpy.load_file(path)


@contextlib.contextmanager
def _naming_the_format(path):
  try:
    yield
  except safetensors.SafetensorError as error:
    raise ValueError(f'{path} is no .safetensors file: {error}.') from error


def _load_file(path):
  flat = read_arrays(path)
  if not any(name.startswith('params/') for name in flat):
    raise ValueError(
      f'{path} holds no variables of a model: of its {len(flat)} names, e.g. '
      f'{next(iter(sorted(flat)), None)!r}, none starts with params/. Convert '
      'PyTorch weights with python -m acmix_jax.tools.convert.'
    )
  return names.unflatten(flat)


def _load_checkpoint(path, average):
  # Here, not above: Orbax takes a second to import.
  import jax
  import orbax.checkpoint as ocp

  with contextlib.closing(ocp.PyTreeCheckpointHandler()) as handler:
    tree = handler.metadata(path / _STATE).tree
    wanted = ('params', 'model_state')
    if tree.get('ema'):
      said = 'moving averages' if average else 'variables of the last update'
      logger.info('Reading the %s of %s, which has both.', said, path)
      wanted = ('ema',) if average else wanted
    # The state of the optimiser, twice as large, stays where it is.
    item = {name: tree[name] for name in wanted if name in tree}
    restored = handler.restore(
      path / _STATE,
      args=ocp.args.PyTreeRestore(
        item,
        # As numpy arrays: the devices that saved need not be there.
        jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item),
        partial_restore=True,
      ),
    )
  variables = restored.get('ema', restored)
  return {
    'params': variables['params'],
    **variables.get('model_state', {}),
  }
