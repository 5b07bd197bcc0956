"""What the label files of a data set hold, told before training begins.

Labels of another convention than the config says need not give an error, only a
mean IoU near 0 or of NaN.
"""

import dataclasses
from collections.abc import Sequence
from concurrent import futures
from typing import NamedTuple

import numpy as np

from acmix_jax.data import decode, label_maps
from acmix_jax.data.sources import label_files

_SHOWN = 10  # Files, numbers or names in a message.
_MUCH_IGNORED = 0.5  # Share of the pixels from which on it is remarked upon.


@dataclasses.dataclass(frozen=True)
class Report:
  """What label files hold; as a string, lines for a person to read.

  Attributes:
    origin: where the files come from.
    total: number of examples in the data set.
    files: number of examples that were read.
    class_names: names of the classes.
    convention: what the numbers in the files should mean.
    pixels: number of pixels of each stored number, int64 [256].
    holders: the first file that holds each stored number.
    damaged: messages about examples that training passes over: files that
      cannot be read, images and label maps of different sizes.
    formless: messages about label files of a form that says no classes.
  """

  origin: str
  total: int
  files: int
  class_names: tuple[str, ...]
  convention: label_maps.Convention
  pixels: np.ndarray
  holders: dict[int, str]
  damaged: tuple[str, ...]
  formless: tuple[str, ...]

  @property
  def found(self) -> list[int]:
    """The stored numbers that occur."""
    return np.flatnonzero(self.pixels).tolist()

  @property
  def unknown(self) -> list[int]:
    """Those of them that mean nothing."""
    return [
      number for number in self.found if not self.convention.known[number]
    ]

  @property
  def missing(self) -> list[str]:
    """Names of the classes that do not occur."""
    occurring = set(self.convention.table[self.found].tolist())
    return [
      name
      for label, name in enumerate(self.class_names)
      if label not in occurring
    ]

  @property
  def ignored_share(self) -> float:
    """Share of the pixels that do not count, unknown ones aside."""
    ignored = self.convention.known & (
      self.convention.table == label_maps.IGNORED
    )
    return float(self.pixels[ignored].sum() / max(1, self.pixels.sum()))

  @property
  def problems(self) -> list[str]:
    """What training must not begin with, and what to do about it."""
    problems = []
    if self.formless:
      problems.append(_listed('label files say no classes', self.formless))
    if self.unknown:
      holders = [self.holders[number] for number in self.unknown]
      problems.append(
        f'{_first(list(dict.fromkeys(holders)))}: '
        f'{self.convention.explain(self.unknown)}'
      )
    elif self.found == [0, 255] and self.convention.known[255]:
      problems.append(
        'the label files hold 0 and 255 alone, of which 255 is ignored; masks '
        'of black and white need 1 in place of 255'
      )
    elif self.found and self.ignored_share == 1:
      problems.append(
        f'all pixels are ignored: the label files hold {_ranges(self.found)} '
        f'alone, but {self.convention}'
      )
    if not self.found and not problems:
      problems.append('not one label file could be read')
    return problems

  @property
  def remarks(self) -> list[str]:
    """What may be meant and may be a mistake."""
    remarks = []
    if self.damaged:
      remarks.append(_listed('examples are damaged', self.damaged))
    if _MUCH_IGNORED < self.ignored_share < 1:
      remarks.append(f'{self.ignored_share:.0%} of the pixels are ignored')
    last = self.convention.last
    if (
      self.convention.fields
      and self.convention.zero_is_ignored
      and self.pixels[0]
      and not self.pixels[last]
    ):
      remarks.append(
        f'0 occurs and is ignored, {last}, the last class, does not occur; if '
        '0 is the first class, set data.zero_is_ignored=False'
      )
    if self.files == self.total and self.missing:
      remarks.append(
        f'{len(self.missing)} of {len(self.class_names)} classes do not occur: '
        f'{_first(self.missing)}'
      )
    return remarks

  def check(self) -> None:
    """Raises a ValueError with the report where there are problems."""
    if self.problems:
      raise ValueError(str(self))

  def __str__(self) -> str:
    lines = [
      f'{self.files:,} of {self.total:,} label files of {self.origin}: '
      f'{self.convention}. Found: {_ranges(self.found) or "none"}; '
      f'{self.ignored_share:.1%} of the pixels are ignored.',
      *(f'Problem: {problem}.' for problem in self.problems),
      *(f'Remark: {remark}.' for remark in self.remarks),
    ]
    return '\n'.join(lines)


class _Finding(NamedTuple):
  """What one example holds: pixels of each number, or a message."""

  name: str = ''
  pixels: np.ndarray | None = None
  damage: str = ''
  formless: str = ''


def audit(
  source: label_files.LabelFiles, limit: int = 0, threads: int = 16
) -> Report:
  """Reads label files and their images, and says what they hold.

  Args:
    source: the data set.
    limit: number of examples to read, spread evenly over all; 0: all of them.
    threads: number of examples that are read at the same time.
  """
  total = len(source)
  count = min(limit, total) if limit else total
  indices = np.linspace(0, total - 1, count).round().astype(int).tolist()
  pixels = np.zeros(256, np.int64)
  holders, damaged, formless = {}, [], []
  with futures.ThreadPoolExecutor(threads) as pool:
    for finding in pool.map(lambda index: _examine(source, index), indices):
      if finding.pixels is not None:
        pixels += finding.pixels
        for number in np.flatnonzero(finding.pixels).tolist():
          holders.setdefault(number, finding.name)
      damaged += [finding.damage] if finding.damage else []
      formless += [finding.formless] if finding.formless else []
  return Report(
    source.origin,
    total,
    count,
    source.class_names,
    source.convention,
    pixels,
    holders,
    tuple(damaged),
    tuple(formless),
  )


def _examine(source: label_files.LabelFiles, index: int) -> _Finding:
  try:
    files = source.read(index)
  except (decode.DecodeError, OSError) as error:
    return _Finding(damage=str(error))
  try:
    stored = label_maps.read(files.label)
  except label_maps.LabelError as error:
    return _Finding(formless=f'{files.label_name}: {error}')
  except decode.DecodeError as error:
    return _Finding(damage=f'{files.label_name}: {error}')
  pixels = np.bincount(stored.ravel(), minlength=256)
  try:
    decode.check_same_size(decode.decode(files.image).shape, stored.shape)
  except decode.DecodeError as error:
    damage = f'{files.image_name}: {error}'
    return _Finding(files.label_name, pixels, damage)
  return _Finding(files.label_name, pixels)


def _listed(what: str, messages: Sequence[str]) -> str:
  shown = '\n  '.join(messages[:_SHOWN])
  more = len(messages) - _SHOWN
  return f'{len(messages)} {what}:\n  {shown}' + (
    f'\n  and {more} more' if more > 0 else ''
  )


def _first(names: Sequence[str]) -> str:
  return ', '.join(names[:_SHOWN]) + (', ...' if len(names) > _SHOWN else '')


def _ranges(numbers: Sequence[int]) -> str:
  """Sorted numbers as '0, 3 to 7, 255'."""
  parts = []
  for number in numbers:
    if parts and parts[-1][1] == number - 1:
      parts[-1][1] = number
    else:
      parts.append([number, number])
  return ', '.join(
    str(first) if first == last else f'{first} to {last}'
    for first, last in parts
  )
