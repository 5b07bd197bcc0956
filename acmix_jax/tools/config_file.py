"""Configs: the recipes by their names, other files by their paths."""

import importlib.util
import inspect
import os
import pathlib
from collections.abc import Sequence

import ml_collections
from absl import flags
from ml_collections import config_flags

from acmix_jax import lookup

_RECIPES = pathlib.Path(__file__).parents[1] / 'configs'


def recipes() -> list[str]:
  """Names of the recipes."""
  # What recipes share has no config of its own.
  return sorted(
    path.stem
    for path in _RECIPES.glob('*.py')
    if 'def get_config(' in path.read_text()
  )


def is_config(name: str) -> bool:
  """Whether a name is that of a config rather than of a workdir."""
  stem = name.partition(':')[0]
  return stem.endswith('.py') or (
    stem in recipes() and not os.path.exists(name)
  )


def load(name: str, overrides: Sequence[str] = ()) -> ml_collections.ConfigDict:
  """The config of a recipe, or of a file with a function `get_config`.

    load('ade20k_upernet:swin_tiny_acmix', ['--config.train.batch_size=32'])

  Args:
    name: name of a recipe or path of a file, such as 'resnet50_acmix' and
      'configs/resnet50_acmix.py'; an argument of the config follows a colon.
    overrides: flags that set fields.

  Raises:
    ValueError: no such recipe, file, field or value.
  """
  config = _make(*name.split(':', 1))
  arguments = ['', *overrides]
  values = flags.FlagValues()
  try:
    holder = config_flags.DEFINE_config_dict(
      'config',
      config,
      lock_config=True,
      flag_values=values,
      sys_argv=arguments,
    )
    rest = values(arguments)[1:]
  except AttributeError as error:
    # It holds a KeyError, whose text would be quoted.
    (reason,) = getattr(error.args[0], 'args', error.args)
    reason = reason.replace('\n', '. ')
    raise ValueError(f'{name} has no field {reason}') from error
  except flags.Error as error:
    raise ValueError(str(error)) from error
  if rest:
    raise ValueError(f'Not understood: {" ".join(rest)}')
  return holder.value


def _make(name, *argument):
  """The config that a recipe or file makes of its argument."""
  names = recipes()
  path = _RECIPES / f'{name}.py'
  if name not in names:
    path = pathlib.Path(name).expanduser()
    if not path.is_file():
      kind = 'File' if path.suffix == '.py' else 'Recipe'
      raise ValueError(lookup.unknown(kind, name, names))
  spec = importlib.util.spec_from_file_location('config', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  try:
    inspect.signature(module.get_config).bind(*argument)
  except (AttributeError, TypeError) as error:
    raise ValueError(f'{path}: get_config: {error}.') from error
  return module.get_config(*argument)
