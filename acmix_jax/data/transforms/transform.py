"""The form of a transform, what all share, decoding, and composition."""

import dataclasses
import math
from collections.abc import Callable, Collection, Sequence
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
class Keep:
  """Keeps what is named of an example and leaves out all else."""

  keys: tuple[str, ...]

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    del rng
    return {key: example[key] for key in self.keys if key in example}


@dataclasses.dataclass(frozen=True)
class Decode:
  """Decodes `image` from the bytes of a file; an array stays as it is.

  Raises:
    decode.DecodeError: the file is damaged, or the label map or the masks that
      belong to it have another size.
  """

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    del rng
    image = example['image']
    if isinstance(image, bytes):
      image = decode.decode(image)
    if 'label_map' in example:
      decode.check_same_size(image.shape, example['label_map'].shape)
    if 'masks' in example:
      shape = example['masks'].shape[1:]
      decode.check_same_size(image.shape, shape, 'annotations')
    return {**example, 'image': image}


def check_size(name: str, size: int) -> None:
  """Raises a ValueError where a side is less than a pixel."""
  if size < 1:
    raise ValueError(f'{name}={size} is not a positive number of pixels.')


def check_range(name: str, bounds: Sequence[float]) -> None:
  """Raises a ValueError unless bounds are (least, greatest), positive."""
  if len(bounds) != 2 or not 0 < bounds[0] <= bounds[1] < math.inf:
    raise ValueError(
      f'{name}={tuple(bounds)} is not (least, greatest), finite and above 0.'
    )


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
