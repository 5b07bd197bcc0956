"""The form of a transform, decoding, and transforms in a row."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from acmix_jax.data import decode

Example = dict[str, Any]
Transform = Callable[[Example, np.random.Generator], Example]


@dataclasses.dataclass(frozen=True)
class Compose:
  """Applies transforms one after the other."""

  transforms: tuple[Transform, ...]

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    for transform in self.transforms:
      example = transform(example, rng)
    return example


@dataclasses.dataclass(frozen=True)
class Decode:
  """Decodes `image` from the bytes of a file; an array stays as it is.

  Raises:
    decode.DecodeError: the file is damaged.
  """

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    del rng
    if not isinstance(example['image'], bytes):
      return example
    return {**example, 'image': decode.decode(example['image'])}
