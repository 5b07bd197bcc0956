"""Variables by names such as 'params/head/kernel'."""

from collections.abc import Iterable, Mapping
from typing import Any

from flax import traverse_util

# Names of one kind that a message shows.
_SHOWN = 10


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
  """Turns nested dicts into one dict with names joined by '/'."""
  return traverse_util.flatten_dict(tree, sep='/')


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
  """Inverts `flatten`."""
  return traverse_util.unflatten_dict(flat, sep='/')


def listing(kinds: Mapping[str, Iterable[str]]) -> str:
  """Lists names by kind, such as '12 missing: a; b; ...; and 2 more'.

  Args:
    kinds: the names of each kind.

  Returns:
    A line for each kind that has names: their count and the first ten. ''
    without any.
  """
  lines = []
  for kind, names in kinds.items():
    names = sorted(set(names))
    if names:
      more = len(names) - _SHOWN
      rest = f'; and {more} more' if more > 0 else ''
      lines.append(f'{len(names)} {kind}: {"; ".join(names[:_SHOWN])}{rest}')
  return '\n'.join(lines)
