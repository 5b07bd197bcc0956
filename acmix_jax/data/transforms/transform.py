"""The form of a transform, and transforms in a row."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

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
