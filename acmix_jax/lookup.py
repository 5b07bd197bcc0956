"""Names looked up in tables, with an answer to a name that is in none."""

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

_Value = TypeVar('_Value')


class UnknownName(KeyError, ValueError):
  """A name that is not in its table.

  A KeyError, because a table lacks it, and a ValueError like every other
  argument or field that cannot work.
  """

  # A KeyError prints the repr of its message.
  __str__ = Exception.__str__


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
  """The message about an unknown name, with the nearest known one.

    unknown('Model', 'resnet5', ['resnet50', 'san10'])
    "Model 'resnet5' is unknown. Did you mean 'resnet50'? Known: resnet50,
    san10."

  Args:
    kind: what is named, to start a sentence.
    name: the name given.
    known: the names allowed.
  """
  known = list(known)
  near = difflib.get_close_matches(str(name), known, n=1)
  hint = f' Did you mean {near[0]!r}?' if near else ''
  return f'{kind} {name!r} is unknown.{hint} Known: {", ".join(known)}.'


def find(table: Mapping[str, _Value], name: str, kind: str) -> _Value:
  """The value of a name in a table.

  Raises:
    UnknownName: the table lacks the name; see `unknown`.
  """
  if name not in table:
    raise UnknownName(unknown(kind, name, table))
  return table[name]
