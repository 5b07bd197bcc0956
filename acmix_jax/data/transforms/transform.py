"""The form of a transform, what all share, decoding, and composition."""

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import ml_collections
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


class FieldError(ValueError):
  """A field of a transform has a value that cannot work.

  Attributes:
    field: Name of the field.
    value: Its value.
    problem: What is wrong with it: 'is not ...'.
  """

  def __init__(self, field: str, value: Any, problem: str):
    super().__init__(field, value, problem)
    self.field, self.value, self.problem = field, value, problem

  def __str__(self) -> str:
    return f'{self.field}={self.value!r} {self.problem}'


def from_config(
  make: Callable[..., Any],
  fields: Mapping[str, str],
  config: ml_collections.ConfigDict,
  **others: Any,
) -> Any:
  """Makes a transform of fields of `config.data`, which its errors name.

  Args:
    make: class of the transform.
    fields: for fields of the transform the name of that of the config.
    config: `config.data`.
    **others: other fields of the transform.

  Raises:
    FieldError: a field of the config has a value that cannot work.
  """
  values = {key: as_tuples(config[name]) for key, name in fields.items()}
  try:
    return make(**values, **others)
  except FieldError as error:
    name = fields.get(error.field)
    if name is None:
      raise
    raise FieldError(f'data.{name}', config[name], error.problem) from error


def as_tuples(value: Any) -> Any:
  """Lists as tuples, in one another, too; all else as it is."""
  if isinstance(value, (list, tuple)):
    return tuple(map(as_tuples, value))
  return value


def check_count(field: str, count: int, of: str = 'pixels') -> None:
  """Raises a FieldError unless a number is whole and at least 1."""
  if not isinstance(count, int) or count < 1:
    raise FieldError(
      field, count, f'is not a whole number of {of} of at least 1.'
    )


def check_pair(field: str, sides: Sequence[int], what: str) -> None:
  """Raises a FieldError unless sides are two whole numbers of at least 1."""
  if len(sides) != 2 or not all(isinstance(x, int) and x >= 1 for x in sides):
    raise FieldError(
      field, sides, f'is not {what} in whole pixels, each at least 1.'
    )


def check_probability(field: str, probability: float) -> None:
  """Raises a FieldError unless a number is within 0..1."""
  if not 0 <= probability <= 1:
    raise FieldError(field, probability, 'is not within 0..1.')


def check_choice(field: str, value: str, known: Collection[str]) -> None:
  """Raises a FieldError unless a value is one of those known."""
  if value not in known:
    raise FieldError(field, value, f'is not one of: {", ".join(known)}.')


def check_range(
  field: str, bounds: Sequence[float], most: float = math.inf
) -> None:
  """Raises a FieldError unless bounds are (least, greatest), positive.

  Args:
    field: name of the field.
    bounds: its value.
    most: what the greatest may be; infinity: any finite number.
  """
  least, greatest = bounds if len(bounds) == 2 else (0, 0)
  if not 0 < least <= greatest <= most or greatest == math.inf:
    limit = 'finite' if most == math.inf else f'at most {most}'
    raise FieldError(
      field, bounds, f'is not (least, greatest), above 0 and {limit}.'
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
