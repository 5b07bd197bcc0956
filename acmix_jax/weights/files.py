"""Variables in .safetensors files, under names joined by '/'."""

import os
import pathlib
from typing import Any

import numpy as np
from flax import traverse_util
from safetensors import SafetensorError
from safetensors import numpy as safetensors


def save_weights(path: str | os.PathLike, variables: dict[str, Any]) -> None:
  """Writes variables as a file of names such as 'params/head/kernel'.

  Args:
    path: the file, replaced at once if it exists.
    variables: nested dicts of arrays.
  """
  flat = traverse_util.flatten_dict(variables, sep='/')
  path = pathlib.Path(path)
  temporary = path.with_name(f'{path.name}.tmp')
  # The library writes the memory of an array, whatever the order of its axes.
  flat = {name: np.asarray(value, order='C') for name, value in flat.items()}
  safetensors.save_file(flat, temporary)
  temporary.replace(path)


def load_weights(path: str | os.PathLike) -> dict[str, Any]:
  """Reads the variables of a model, ready for `model.apply`.

    variables = acmix_jax.load_weights('resnet50_acmix.safetensors')
    logits = model.apply(variables, images)

  Args:
    path: a file of `save_weights` or of `python -m acmix_jax.tools.convert`.

  Returns:
    {'params': ..., 'batch_stats': ...} of numpy arrays.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: the file is of another format, or holds other names.
  """
  try:
    flat = safetensors.load_file(path)
  except SafetensorError as error:
    raise ValueError(f'{path} is no .safetensors file: {error}.') from error
  if not any(name.startswith('params/') for name in flat):
    raise ValueError(
      f'{path} holds no variables of a model: of its {len(flat)} names, e.g. '
      f'{next(iter(sorted(flat)), None)!r}, none starts with params/. Convert '
      'PyTorch weights with python -m acmix_jax.tools.convert.'
    )
  return traverse_util.unflatten_dict(flat, sep='/')
