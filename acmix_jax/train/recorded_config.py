"""config.json of a workdir: the config that its training was made with."""

import json
import logging
import os
import pathlib

import ml_collections

from acmix_jax.train import workdir as workdir_lib

logger = logging.getLogger(__name__)

_NAME = 'config.json'


def read(workdir: pathlib.Path) -> dict | None:
  """Fields by dotted name, None if there is no file or it is damaged.

  A damaged file is renamed to config.json.damaged-1 (or -2, ...).
  """
  path = workdir / _NAME
  try:
    content = json.loads(path.read_bytes())
    if not isinstance(content, dict):
      raise ValueError(f'it holds no object, but {type(content).__name__}')
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
  return _flatten(content)


def write(workdir: pathlib.Path, config: ml_collections.ConfigDict) -> None:
  """Writes config.json; logs what differs from the one already there."""
  new = json.loads(config.to_json())
  old, now = read(workdir), _flatten(new)
  for name in sorted(old.keys() | now.keys()) if old is not None else ():
    if old.get(name) != now.get(name):
      logger.warning(
        'Resuming with %s=%r; it was %r.', name, now.get(name), old.get(name)
      )
  # Atomic, as in `writer`.
  temporary = workdir / f'{_NAME}.tmp'
  temporary.write_text(json.dumps(new, indent=2) + '\n')
  os.replace(temporary, workdir / _NAME)


def _flatten(tree: dict, prefix: str = '') -> dict:
  flat = {}
  for key, value in tree.items():
    if isinstance(value, dict):
      flat |= _flatten(value, f'{prefix}{key}.')
    else:
      flat[prefix + key] = value
  return flat
