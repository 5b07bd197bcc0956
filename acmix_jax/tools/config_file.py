"""Configs of files, with fields set as the flags of main.py set them."""

import os
from collections.abc import Sequence

import ml_collections
from absl import flags
from ml_collections import config_flags


def load(path: str, overrides: Sequence[str] = ()) -> ml_collections.ConfigDict:
  """The config that a file makes.

  Args:
    path: such as 'configs/resnet50_acmix.py', or 'FILE.py:ARGUMENT' for a file
      whose config takes an argument.
    overrides: such as '--config.train.batch_size=512'.

  Raises:
    ValueError: no such file, field or value.
  """
  if not os.path.exists(path.partition(':')[0]):
    raise ValueError(f'{path}: there is no such file.')
  arguments = ['', f'--config={path}', *overrides]
  values = flags.FlagValues()
  holder = config_flags.DEFINE_config_file(
    'config', lock_config=True, flag_values=values, sys_argv=arguments
  )
  try:
    values(arguments)
  except (AttributeError, flags.Error) as error:
    raise ValueError(str(error)) from error
  return holder.value
