"""Scopes (`jax.named_scope`) by which tools.cost knows what to count."""

import fractions
import math
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
  """Scope of products of `computed` pixels that count as those of `pixels`."""
  return f'{_TIMES}{pixels}:{computed}'


def factor(scopes: Iterable[str]) -> fractions.Fraction:
  """What products in these scopes count for: 1 without such a scope."""
  counted = (x.removeprefix(_TIMES) for x in scopes if x.startswith(_TIMES))
  return math.prod(
    (fractions.Fraction(*map(int, x.split(':'))) for x in counted),
    start=fractions.Fraction(1),
  )
