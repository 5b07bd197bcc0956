r"""Converts official PyTorch weights into a file for `acmix_jax.load_weights`.

    acmix-jax convert resnet50 resnet50.pth resnet50.safetensors
    acmix-jax convert swin_tiny IN OUT --num_classes=21841
    acmix-jax convert upernet:swin_tiny IN OUT

IN is a .safetensors file with the official names, or a .pth file; the latter
needs PyTorch (pip install 'acmix-jax[torch]'). Training starts from OUT with
--config.init_from=OUT. Fields of the model that differ from its defaults are
given as --FIELD=VALUE. Of a file with moving averages these are taken, or with
--no-average the weights of the last update.
"""

import argparse
import ast
import logging
import pathlib
import pickle
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from acmix_jax import models, weights
from acmix_jax.weights import files


def read(path: pathlib.Path) -> Mapping[str, Any]:
  """Reads arrays or tensors by their official names.

  Args:
    path: a .safetensors file, or one of PyTorch: a state dict, or a checkpoint
      with one; see `weights.state_dict.unwrap`. Nothing in it is executed.

  Raises:
    FileNotFoundError: there is no such file.
    ModuleNotFoundError: the file needs PyTorch, which is not installed.
    ValueError: the file is of another format, holds no dict, or more than can
      be read safely.
  """
  if path.suffix == '.safetensors':
    return files.read_arrays(path)
  try:
    import torch
  except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
      f"{path} needs PyTorch to be read: pip install 'acmix-jax[torch]', or "
      'save the weights as .safetensors where PyTorch is installed.'
    ) from error
  try:
    saved = torch.load(path, map_location='cpu', weights_only=True)
  except (pickle.UnpicklingError, EOFError) as error:
    raise ValueError(
      f'{path} holds more than weights, or is no file of PyTorch. If you trust '
      'it, keep its weights alone: torch.save(torch.load(path, '
      f"weights_only=False)['model'], new_path). PyTorch says: {error}"
    ) from error
  if not isinstance(saved, Mapping):
    raise ValueError(f'{path} holds a {type(saved).__name__}, no state dict.')
  return saved


def convert(
  name: str,
  source: pathlib.Path,
  target: pathlib.Path,
  *,
  average: bool = True,
  **overrides: Any,
) -> None:
  """Converts the weights in a file.

  Args:
    name: one of `acmix_jax.list_models()`, or a head with its `backbone` among
      the overrides.
    source: see `read`.
    target: the .safetensors file to write.
    average: whether of a file with both moving averages and the weights of the
      last update the former are taken.
    **overrides: the fields the model is made with, if not the defaults.

  Raises:
    KeyError: no model has that name.
    ValueError: the target has another suffix, or the weights do not fit.
  """
  if target.suffix != '.safetensors':
    raise ValueError(
      f'{target} must end in .safetensors: {target.with_suffix(".safetensors")}'
    )
  models.create_model(name, **overrides)  # Refuses a wrong name at once.
  variables = weights.from_torch(
    name, read(source), average=average, **overrides
  )
  weights.save_weights(target, variables)


def _path(text: str) -> pathlib.Path:
  return pathlib.Path(text).expanduser()


def _override(text: str) -> tuple[str, Any]:
  field, separator, value = text.removeprefix('--').partition('=')
  if not text.startswith('--') or not separator:
    raise ValueError(
      f'{text!r} is not understood; give fields as --FIELD=VALUE.'
    )
  try:
    return field, ast.literal_eval(value)
  except (SyntaxError, ValueError):
    return field, value


def main(argv: Sequence[str] | None = None) -> int:
  """Returns the exit status: 2 for what cannot be converted."""
  logging.basicConfig(format='convert: %(message)s')
  # What was taken off the state dict: prefixes, and what was saved around it.
  logging.getLogger('acmix_jax').setLevel(logging.INFO)
  parser = argparse.ArgumentParser(
    prog='acmix-jax convert',
    description='Converts official PyTorch weights. Fields of the model that '
    'differ from its defaults follow as --FIELD=VALUE.',
  )
  parser.add_argument('name', metavar='MODEL|HEAD:BACKBONE')
  parser.add_argument('source', type=_path, metavar='IN')
  parser.add_argument('target', type=_path, metavar='OUT')
  parser.add_argument(
    '--num_classes', type=int, help='default: those of the published model'
  )
  parser.add_argument(
    '--average',
    action=argparse.BooleanOptionalAction,
    default=True,
    help='Whether of a file with both moving averages and the weights of the '
    'last update the former are taken.',
  )
  args, rest = parser.parse_known_args(argv)
  try:
    overrides = dict(map(_override, rest))
    convert(
      source=args.source,
      target=args.target,
      average=args.average,
      num_classes=args.num_classes,
      **models.split_name(args.name),
      **overrides,
    )
  except (OSError, ImportError, ValueError) as error:
    print(f'convert: {error}', file=sys.stderr)
    return 2
  print(f'{args.target}: weights of {args.name}')
  return 0


if __name__ == '__main__':
  sys.exit(main())
