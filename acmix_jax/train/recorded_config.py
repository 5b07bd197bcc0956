"""config.json of a workdir: the config that its training was made with."""

import json
import logging
import os
import pathlib
import re

import ml_collections

from acmix_jax.train import workdir as workdir_lib
from acmix_jax.weights import files

logger = logging.getLogger(__name__)

_NAME = 'config.json'
# Fields that say what the state of a training is. But for the last ones, all
# fields of a model do: also where shapes agree, it would compute something
# else. Moving averages: whether there are any.
_FIXED = re.compile(
  r'task|optim\.name|train\.ema_decay|model\.(?!(dtype|remat|drop_path|'
  r'dropout|norm_groups|batch_norm|frozen_stages|\w+_implementation)$).*'
)


def read(workdir: pathlib.Path) -> dict | None:
  """The content of the file, None if there is none or it is damaged.

  A damaged file is renamed to config.json.damaged-1 (or -2, ...).
  """
  path = workdir / _NAME
  try:
    return _parse(path)
  except FileNotFoundError:
    return None
  except ValueError as error:
    logger.warning(
      '%s cannot be read (%s). It is kept as %s; what has changed in the '
      'config is not known.',
      path,
      error,
      workdir_lib.move_aside(path),
    )
    return None


def load(workdir: pathlib.Path) -> ml_collections.ConfigDict:
  """The config of a training, for what is done with its weights later.

  Raises:
    FileNotFoundError: the workdir has none.
    ValueError: it is damaged.
  """
  path = workdir / _NAME
  try:
    content = _parse(path)
  except ValueError as error:
    raise ValueError(f'{path} cannot be read: {error}.') from error
  return ml_collections.ConfigDict(_with_tuples(content)).lock()


def _parse(path: pathlib.Path) -> dict:
  content = json.loads(path.read_bytes())
  if not isinstance(content, dict):
    raise ValueError(f'it holds no object, but {type(content).__name__}')
  return content


def _with_tuples(value):
  """Lists as the tuples that they were before they became JSON."""
  if isinstance(value, dict):
    return {key: _with_tuples(item) for key, item in value.items()}
  if isinstance(value, list):
    return tuple(map(_with_tuples, value))
  return value


def check(workdir: pathlib.Path, config: ml_collections.ConfigDict) -> None:
  """Refuses a config that cannot resume the training of a workdir.

  Raises:
    ValueError: fields that say what the state is differ; all are named.
  """
  old = read(workdir)
  if old is None or not files.checkpoints(workdir / files.CHECKPOINTS):
    return
  fixed = [
    f'{name}={now!r}; it was {then!r}'
    for name, then, now in _differences(old, _as_json(config))
    if _FIXED.fullmatch(name)
    # A field that one side lacks came with another version of the project.
    and None not in (then, now)
    and (name != 'train.ema_decay' or bool(then) != bool(now))
  ]
  if fixed:
    problems = '\n  '.join(fixed)
    raise ValueError(
      f'{workdir} holds a training that this config cannot resume:\n  '
      f'{problems}\nChoose another workdir; init_from={workdir} starts there '
      'from the weights of this one, as far as they fit.'
    )


def write(workdir: pathlib.Path, config: ml_collections.ConfigDict) -> None:
  """Writes config.json; logs what differs from the one already there."""
  old, new = read(workdir), _as_json(config)
  for name, then, now in _differences(new if old is None else old, new):
    logger.warning('Resuming with %s=%r; it was %r.', name, now, then)
  # Atomic, as in `writer`.
  temporary = workdir / f'{_NAME}.tmp'
  temporary.write_text(json.dumps(new, indent=2) + '\n')
  os.replace(temporary, workdir / _NAME)


def _as_json(config):
  return json.loads(config.to_json())


def _differences(old, new):
  """(name, old value, new value) of fields that differ; None where missing."""
  old, new = _flatten(old), _flatten(new)
  for name in sorted(old.keys() | new.keys()):
    if old.get(name) != new.get(name):
      yield name, old.get(name), new.get(name)


def _flatten(tree: dict, prefix: str = '') -> dict:
  flat = {}
  for key, value in tree.items():
    if isinstance(value, dict):
      flat |= _flatten(value, f'{prefix}{key}.')
    else:
      flat[prefix + key] = value
  return flat
