"""Checks of the fields and inputs of layers."""

import numpy as np
from jaxtyping import Array


def check_heads(name: str, features: int, num_heads: int):
  """Raises ValueError unless the heads divide the features."""
  if num_heads < 1 or features < num_heads or features % num_heads:
    nearest = max(1, features // max(1, num_heads)) * max(1, num_heads)
    raise ValueError(
      f'{name}: features={features} is not divisible by num_heads={num_heads}; '
      f'nearest that works: features={nearest}.'
    )


def check_choice(name: str, field: str, value: str, known: tuple[str, ...]):
  """Raises ValueError unless the value is one of those known."""
  if value not in known:
    raise ValueError(
      f'{name}: {field}={value!r}; {", ".join(map(repr, known))} are allowed.'
    )


def check_counts(name: str, **fields: int | tuple[int, ...]):
  """Raises ValueError unless each field is a count, or a tuple of counts.

  Counts are whole numbers from 1 up.
  """
  for field, value in fields.items():
    counts = value if isinstance(value, tuple) else (value,)
    if not counts or not all(isinstance(x, int) and x >= 1 for x in counts):
      raise ValueError(
        f'{name}: {field}={value}; '
        + (
          'one or more whole numbers, each at least 1, are needed.'
          if isinstance(value, tuple)
          else 'a whole number of at least 1 is needed.'
        )
      )


def check_rates(name: str, **fields: float):
  """Raises ValueError unless each field is a probability below 1."""
  for field, rate in fields.items():
    if not 0 <= rate < 1:
      raise ValueError(f'{name}: {field}={rate}; 0 <= {field} < 1 is needed.')


def check_stages(name: str, stage_sizes: tuple[int, ...], **fields):
  """Raises ValueError unless each field has one value a stage."""
  for field, values in fields.items():
    if len(values) != len(stage_sizes):
      raise ValueError(
        f'{name}: {field}={values} has {len(values)} values; one for each of '
        f'the {len(stage_sizes)} stages of stage_sizes={stage_sizes} is needed.'
      )


def check_map(name: str, x: Array | np.ndarray):
  """Raises ValueError unless x is a batch of maps."""
  if x.ndim != 4:
    raise ValueError(
      f'{name}: input of shape {x.shape}; [b, h, w, c] is needed (add a batch '
      'axis with x[None]).'
    )
