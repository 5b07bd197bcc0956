"""Scopes (`jax.named_scope`) by which tools.cost knows what to count."""

import fractions
from collections.abc import Iterable

# A convolution that only copies.
COPY = 'unfold'
# Elementwise products that a sum completes.
MULTIPLY_ADD = 'multiply_add'
# Products that resize a map.
RESIZE = 'resize'
# Before a fraction: what products count for, where fewer do the same.
_TIMES = 'times '


def counted_as(pixels: int, computed: int) -> str:
  """Scope of products of few pixels that count as those of more."""
  return f'{_TIMES}{pixels}:{computed}'


def factor(scopes: Iterable[str]) -> fractions.Fraction:
  """What products in these scopes count for."""
  found = 1
  for scope in scopes:
    if scope.startswith(_TIMES):
      found *= fractions.Fraction(scope.removeprefix(_TIMES).replace(':', '/'))
  return fractions.Fraction(found)
