"""The form of a transform, what all share, decoding, and composition."""

import dataclasses
from collections.abc import Callable, Collection
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


def check_arrays(
  transform: Transform, example: Example, known: Collection[str]
) -> None:
  """Refuses arrays that a transform would leave where the image was.

  Raises:
    ValueError: a key that is not known holds an array of two axes or more.
  """
  for key, value in example.items():
    if key not in known and isinstance(value, np.ndarray) and value.ndim >= 2:
      raise ValueError(
        f'{type(transform).__name__} does not know how to transform {key!r}, '
        f'an array of shape {value.shape}; it knows: {", ".join(known)}.'
      )
