r"""Converts official PyTorch weights into a file of this project.

    python -m acmix_jax.tools.convert resnet50 resnet50.pth resnet50.safetensors
    python -m acmix_jax.tools.convert swin_tiny IN OUT --num_classes=21841

IN is a .pth file, for which PyTorch is needed (pip install 'acmix-jax[torch]'),
or a .safetensors file with the official names, for which it is not. Training
starts from OUT with --config.init_from=OUT; elsewhere it is read by
`acmix_jax.load_weights`. Other fields of a model that differ from its defaults
are given as --FIELD=VALUE.
"""

import argparse
import ast
import pathlib
import pickle
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors import numpy as safetensors

from acmix_jax import models, weights

# Where training programs put the state dict in what they save.
_NESTED = ('state_dict', 'model')
# What torch.nn.DataParallel puts before each name.
_PREFIX = 'module.'


def read_state_dict(path: pathlib.Path) -> dict[str, np.ndarray]:
  """Reads arrays by their official names.

  Args:
    path: a .safetensors file, or one of PyTorch: a state dict, or a checkpoint
      with one under 'state_dict' or 'model'. Nothing in it is executed.

  Raises:
    FileNotFoundError: there is no such file.
    ModuleNotFoundError: the file needs PyTorch, which is not installed.
    ValueError: the file holds no state dict, or more than can be read safely.
  """
  if path.suffix == '.safetensors':
    try:
      entries = safetensors.load_file(path)
    except SafetensorError as error:
      raise ValueError(f'{path} is no .safetensors file: {error}.') from error
  else:
    entries = _read_torch(path)
  return {name.removeprefix(_PREFIX): x for name, x in entries.items()}


def _read_torch(path):
  try:
    import torch
  except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
      f"{path} needs PyTorch to be read: pip install 'acmix-jax[torch]', or "
      'save the weights as .safetensors where PyTorch is installed.'
    ) from error
  try:
    entries = torch.load(path, map_location='cpu', weights_only=True)
  except (pickle.UnpicklingError, EOFError) as error:
    raise ValueError(
      f'{path} holds more than weights, or is no file of PyTorch. If you trust '
      'it, keep its weights alone: torch.save(torch.load(path, '
      f"weights_only=False)['model'], new_path). PyTorch says: {error}"
    ) from error
  for key in _NESTED:
    if isinstance(entries, Mapping) and isinstance(entries.get(key), Mapping):
      entries = entries[key]
  if not isinstance(entries, Mapping) or not all(
    isinstance(value, torch.Tensor) for value in entries.values()
  ):
    found = list(entries) if isinstance(entries, Mapping) else type(entries)
    raise ValueError(
      f'{path} holds no state dict, neither at the top nor under '
      f'{" or ".join(map(repr, _NESTED))}; found: {found}.'
    )
  # NumPy has no bfloat16.
  return {
    name: (value.float() if value.is_floating_point() else value).numpy()
    for name, value in entries.items()
  }


def convert(
  name: str, source: pathlib.Path, target: pathlib.Path, **overrides: Any
) -> None:
  """Converts a file; see the module.

  Args:
    name: one of `acmix_jax.list_models()`.
    source: see `read_state_dict`.
    target: the .safetensors file to write.
    **overrides: the fields the model is made with, if not the defaults.

  Raises:
    KeyError: no model has that name.
    ValueError: the target's suffix is another, or the weights do not fit.
  """
  if target.suffix != '.safetensors':
    raise ValueError(
      f'{target} must end in .safetensors: {target.with_suffix(".safetensors")}'
    )
  models.create_model(name, **overrides)  # A wrong name is told at once.
  state_dict = read_state_dict(source)
  weights.save_weights(
    target, weights.from_torch(name, state_dict, **overrides)
  )


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
  parser = argparse.ArgumentParser(
    prog='python -m acmix_jax.tools.convert',
    description='Converts official PyTorch weights. Fields of the model that '
    'differ from its defaults follow as --FIELD=VALUE.',
  )
  parser.add_argument('name', metavar='MODEL')
  parser.add_argument('source', type=pathlib.Path, metavar='IN')
  parser.add_argument('target', type=pathlib.Path, metavar='OUT')
  parser.add_argument('--num_classes', type=int, default=1000)
  args, rest = parser.parse_known_args(argv)
  try:
    overrides = dict(map(_override, rest))
    convert(
      args.name,
      args.source,
      args.target,
      num_classes=args.num_classes,
      **overrides,
    )
  except (OSError, ImportError, ValueError) as error:
    print(f'convert: {error}', file=sys.stderr)
    return 2
  print(f'{args.target}: weights of {args.name}')
  return 0


if __name__ == '__main__':
  sys.exit(main())
