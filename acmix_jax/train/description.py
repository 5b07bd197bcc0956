"""Whether weights were trained on the data at hand, by what was kept of it.

A description of data is what `Task.description` says: `class_names`, the names
by label, and `images`, the size of the training split; each may be missing.
"""

import itertools
import logging
import pathlib
import unicodedata
from collections.abc import Mapping
from typing import Any

logger = logging.getLogger(__name__)

# Classes that a message shows.
_SHOWN = 10


def check_classes(
  saved: Mapping[str, Any], data: Mapping[str, Any], checkpoint: pathlib.Path
) -> None:
  """Refuses data of other classes than a checkpoint was trained on.

  Raises:
    ValueError: names differ; the message shows both for ten labels.
  """
  difference = _class_difference(saved, data)
  if difference:
    raise ValueError(
      f'{checkpoint} was trained on other classes than the data has. '
      f'{difference}\nGive the classes their names of then; or begin anew in '
      'another workdir, from these weights with init_from if you like.'
    )


def note_images(
  saved: Mapping[str, Any], data: Mapping[str, Any], checkpoint: pathlib.Path
) -> None:
  """Says if the training split has another size than when this was saved."""
  images, now = saved.get('images'), data.get('images', saved.get('images'))
  if images is not None and images != now:
    logger.warning(
      'The training split has %d images; it had %d when %s was saved. Epochs, '
      'and with them the schedule, have another length now.',
      now,
      images,
      checkpoint,
    )


def note_start(
  saved: Mapping[str, Any], data: Mapping[str, Any], path: pathlib.Path
) -> None:
  """Says if a training starts from weights of other classes."""
  difference = _class_difference(saved, data)
  if difference and len(saved['class_names']) == len(data['class_names']):
    # The head has the right shape, so it is not fresh.
    logger.warning(
      'The head comes from %s, too, where its outputs stood for other classes, '
      'though as many. %s',
      path,
      difference,
    )
  elif difference:
    logger.info('%s was trained on other classes. %s', path, difference)


def _class_difference(saved: Mapping[str, Any], data: Mapping[str, Any]) -> str:
  """What differs between two lists of names; '' if one of them is missing."""
  then, now = (
    # The same name may be typed, or stored by a file system, in two ways.
    [unicodedata.normalize('NFC', name) for name in side.get('class_names', [])]
    for side in (saved, data)
  )
  if not then or not now or then == now:
    return ''
  differ = [
    f'{label}: {old!r}, {new!r}'
    for label, (old, new) in enumerate(itertools.zip_longest(then, now))
    if old != new
  ]
  more = len(differ) - _SHOWN
  rest = f'; and {more} more' if more > 0 else ''
  return (
    f'{len(then)} classes then, {len(now)} now; these labels have other names '
    f'(then, now): {"; ".join(differ[:_SHOWN])}{rest}.'
  )
