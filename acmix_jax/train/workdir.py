"""The folder of a training."""

import itertools
import pathlib


def move_aside(path: pathlib.Path) -> pathlib.Path:
  """Renames what is damaged to PATH.damaged-1, or the next free number.

  Returns:
    The new path.
  """
  for number in itertools.count(1):
    target = path.with_name(f'{path.name}.damaged-{number}')
    if not target.exists():
      return path.rename(target)
