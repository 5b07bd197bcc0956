"""Any folder of images and label maps."""

import os
import re
from collections.abc import Sequence

import ml_collections
import numpy as np

from acmix_jax.data import label_maps
from acmix_jax.data.sources import files, label_files, listing, splits

_IMAGES, _LABELS = 'images', 'labels'
# Usual names of the two folders, as letters alone.
_KINDS = {
  _IMAGES: 'images?|imgs?|imgdir|imagedir|jpegimages|photos?|pictures?',
  _LABELS: (
    'annotations?|anndir|anns?|labels?|labelmaps?|masks?|labeldir|maskdir'
    '|segmentations?|segmentationmaps?|segmentationclass|segmaps?'
  ),
}
_EXPECTED = 'images/train/X.jpg with labels/train/X.png'
_SHOWN = 10  # Files in a message.


def open_segmentation_folder(
  config: ml_collections.ConfigDict, split: str
) -> 'SegmentationFolder':
  """The folder of `config.data`.

  Its fields are `dir`; `class_names`, in the order of their numbers, or all of
  them in one string, apart by commas; `ignored_label`, the number of pixels
  that do not count in the files; and `zero_is_ignored`, whether those of number
  0 do not count either and the classes begin with 1.

  Raises:
    FileNotFoundError: no such folder.
    ValueError: the class names cannot serve, or see `SegmentationFolder`.
  """
  names = config.class_names
  names = (names,) if isinstance(names, str) else tuple(names)
  if len(names) == 1:
    names = tuple(name.strip() for name in names[0].split(','))
  if not all(names) or len(set(names)) < max(1, len(names)):
    raise ValueError(
      f'data.class_names={names!r} must name each class once, in the order of '
      'their numbers, such as --config.data.class_names=road,car; the label '
      'maps have numbers only.'
    )
  return SegmentationFolder(
    config.dir,
    split,
    class_names=names,
    convention=label_maps.Convention(
      len(names), config.ignored_label, config.zero_is_ignored
    ),
  )


class SegmentationFolder(label_files.LabelFiles):
  """Images and label maps in folders of their own, paired by name.

  DIR/images/train/X.jpg belongs to DIR/labels/train/X.png, or, with the folders
  the other way round, DIR/train/images/X.jpg to DIR/train/labels/X.png. The
  folder of the labels may be called annotations, masks and so on (`_KINDS`),
  those of the splits any of the usual names (`splits.split_of`). Where there is
  nothing but DIR/train, or no splits at all, the first of the sorted images and
  every tenth after it are held out as 'validation'.

  Images are files of any kind that Pillow reads, label maps are PNG, see
  `label_maps.read`; both may lie in subfolders, the same ones. An image without
  a label map, or the reverse, is an error. What else is passed over, is counted
  in the log; see `listing.Listing`.
  """

  def __init__(
    self,
    directory: str | os.PathLike,
    split: str,
    *,
    class_names: Sequence[str],
    convention: label_maps.Convention,
    source_name: str = 'segmentation_folder',
  ):
    """Lists the files.

    Args:
      directory: the folder.
      split: name of the split.
      class_names: names of the classes, in the order of their numbers.
      convention: what the numbers in the files mean.
      source_name: what messages call the data set.

    Raises:
      FileNotFoundError: no such folder.
      ValueError: its folders are not as expected, or images and label maps do
        not pair.
    """
    home = _find_home(directory, source_name)
    split = splits.split_of(split) or split
    roots, hold_out = _find_roots(home, split)
    self._images = _list(roots[_IMAGES], home, listing.image_suffixes())
    self._labels = _list(roots[_LABELS], home, frozenset(('.png',)))
    _check_pairs(roots, self._images, self._labels)
    self._stems = sorted(self._images)
    self.class_names, self.convention = tuple(class_names), convention
    self.origin = roots[_IMAGES]
    if hold_out:
      self._hold_out(split, source_name)

  def _hold_out(self, split: str, source_name: str) -> None:
    splits.check_split(split, source_name, f' without {self.origin}/train')
    if len(self._stems) < 2:
      raise ValueError(
        f'{self.origin} holds a single image, so none can be held out: add '
        'images, or make folders train and validation.'
      )
    labels = np.zeros(len(self._stems), int)
    indices = splits.split_indices(labels, split, every=10)
    self._stems = [self._stems[index] for index in indices]
    self.origin += ', where each tenth image is held out'

  def __len__(self) -> int:
    return len(self._stems)

  def read(self, index: int) -> label_files.Files:
    """See `LabelFiles`."""
    image, label = self._paths(index)
    return label_files.Files(files.read(image), files.read(label), image, label)

  def read_size(self, index: int) -> tuple[int, int]:
    """See `LabelFiles`."""
    image, _ = self._paths(index)
    return files.read_size(image)

  def _paths(self, index: int) -> tuple[str, str]:
    stem = self._stems[index]
    return self._images[stem], self._labels[stem]


def _find_home(directory: str | os.PathLike, source_name: str) -> str:
  expected = f'expected a folder that holds {_EXPECTED}'
  if not directory:
    raise ValueError(f'data.dir is empty; data {source_name!r}: {expected}.')
  home = os.path.abspath(os.path.expanduser(directory))
  if not os.path.isdir(home):
    raise FileNotFoundError(f'data.dir={home} is no folder; {expected}.')
  return home


def _find_roots(home: str, split: str) -> tuple[dict[str, str], bool]:
  """Folders of images and of labels of a split; whether a part is held out."""
  kinds = _find_kinds(home)
  if kinds:
    _check_kinds(home, kinds)
    found = {kind: splits.find_splits(path) for kind, path in kinds.items()}
    if not any(found.values()):
      return kinds, True
    image_root, hold_out = splits.choose(kinds[_IMAGES], found[_IMAGES], split)
    chosen = splits.split_of(os.path.basename(image_root))
    if chosen not in found[_LABELS]:
      raise ValueError(
        f'{kinds[_LABELS]} has no folder for the split {chosen!r}, which '
        f'{image_root} holds the images of.'
      )
    return {_IMAGES: image_root, _LABELS: found[_LABELS][chosen]}, hold_out
  found = splits.find_splits(home)
  if not found:
    raise ValueError(
      f'{home} holds neither folders of images and labels nor of splits; '
      f'expected {_EXPECTED}. It holds: '
      f'{", ".join(listing.subfolders(home)[:_SHOWN]) or "no folders"}.'
    )
  root, hold_out = splits.choose(home, found, split)
  kinds = _find_kinds(root)
  _check_kinds(root, kinds)
  return kinds, hold_out


def _find_kinds(home: str) -> dict[str, str]:
  """The folders of images and of labels in a folder, where it has them."""
  kinds = {}
  for name in listing.subfolders(home):
    letters = ''.join(re.findall(r'[^\W\d_]', name.casefold()))
    for kind, names in _KINDS.items():
      if not re.fullmatch(names, letters):
        continue
      if kind in kinds:
        raise ValueError(
          f'{home} holds two folders of {kind}: '
          f'{os.path.basename(kinds[kind])} and {name}. Keep one of them there.'
        )
      kinds[kind] = os.path.join(home, name)
  return kinds


def _check_kinds(home: str, kinds: dict[str, str]) -> None:
  missing = [kind for kind in _KINDS if kind not in kinds]
  if missing:
    raise ValueError(
      f'{home} has no folder of {" and none of ".join(missing)}; expected '
      f'{_EXPECTED}. It holds: '
      f'{", ".join(listing.subfolders(home)[:_SHOWN]) or "no folders"}.'
    )


def _list(root: str, home: str, suffixes: frozenset[str]) -> dict[str, str]:
  """Paths of the files of the given suffixes, by their name without it.

  Raises:
    ValueError: there are none, or two of one name.
  """
  parent, folder = os.path.split(root)
  listed = listing.Listing(parent, [folder], home)
  paths, others = {}, []
  for file in listed.files[0]:
    stem, suffix = os.path.splitext(os.path.relpath(file, folder))
    if suffix.lower() not in suffixes:
      listed.passed_over[f'of suffix {suffix.lower()}'] += 1
      others.append(file)
    elif stem in paths:
      raise ValueError(
        f'{os.path.join(parent, file)} and {paths[stem]} have the same name; '
        'one of them has to go, or be renamed.'
      )
    else:
      paths[stem] = os.path.join(parent, file)
  listed.log_passed_over()
  if not paths:
    kinds = 'PNG file' if suffixes == {'.png'} else 'image'
    hint = (
      f'; it holds {len(others)} others, such as {others[0]}' if others else ''
    )
    raise ValueError(f'{root} holds no {kinds}{hint}.')
  return paths


def _check_pairs(
  roots: dict[str, str], images: dict[str, str], labels: dict[str, str]
) -> None:
  without_label = sorted(set(images) - set(labels))
  without_image = sorted(set(labels) - set(images))
  parts = [
    f'{len(names)} {kind}: {", ".join(names[:_SHOWN])}'
    + (', ...' if len(names) > _SHOWN else '')
    for kind, names in (
      ('images have no label map', [images[name] for name in without_label]),
      ('label maps have no image', [labels[name] for name in without_image]),
    )
    if names
  ]
  if parts:
    raise ValueError(
      f'{roots[_IMAGES]} and {roots[_LABELS]} do not pair by the names of '
      f'their files without suffix; {"; ".join(parts)}. Add or rename what is '
      'missing, or move what is left over elsewhere.'
    )
