"""ADE20K's 150 classes, as the official archive unpacks or as it is packed."""

import io
import os
import re

from etils import epath

from acmix_jax.data import decode, label_maps
from acmix_jax.data.sources import label_files, prepared, segmentation_folder

ARCHIVE = 'ADEChallengeData2016'
CLASSES_FILE = 'objectInfo150.txt'


def open_ade20k(
  directory: str | os.PathLike, split: str
) -> label_files.LabelFiles:
  """The data set of `directory`, unpacked or packed.

  Labels are those of the scene parsing benchmark: in the files 0 is 'other',
  which does not count, and 1 to 150 are the classes.

  Args:
    directory: the folder ADEChallengeData2016 or the one that holds it, or
      what `acmix_jax.tools.prepare ade20k` wrote.
    split: 'train' or 'validation'; packed ones also take parts in the notation
      of TFDS, 'train[:99%]'.

  Raises:
    FileNotFoundError: neither is there.
    ValueError: it is not as expected.
  """
  home = find_archive(directory)
  if home is None:
    return PackedAde20k(directory, split)
  class_names = read_class_names(home / CLASSES_FILE)
  return segmentation_folder.SegmentationFolder(
    home,
    split,
    class_names=class_names,
    convention=_convention(len(class_names)),
    source_name='ade20k',
  )


def find_archive(directory: str | os.PathLike) -> epath.Path | None:
  """The folder of the unpacked archive in `directory`, or None."""
  root = epath.Path(directory or '.').expanduser()
  for home in (root, root / ARCHIVE):
    if directory and (home / 'images').is_dir():
      return home
  return None


def read_class_names(path: epath.Path) -> tuple[str, ...]:
  """Names of the classes by objectInfo150.txt: the first synonym of each.

  Its lines are the number of the class, counts, and the synonyms, apart by tabs
  (or commas, the synonyms by semicolons), after a line of headings.

  Raises:
    FileNotFoundError: no such file.
    ValueError: its classes are not numbered from 1 without a gap.
  """
  try:
    text = path.read_text(encoding='utf-8')
  except FileNotFoundError as error:
    raise FileNotFoundError(
      f'{path} is missing, which names the classes; it is part of the archive '
      f'{ARCHIVE}.zip.'
    ) from error
  line = r'^\W*(\d+)\s*[\t,]\s*(?:[\d.]+\s*[\t,]\s*)*([^\d\s].*)$'
  found = re.findall(line, text, re.MULTILINE)
  numbers = [int(number) for number, _ in found]
  if not found or numbers != list(range(1, len(found) + 1)):
    raise ValueError(
      f'{path} does not list classes numbered from 1 without a gap, one a line.'
    )
  return tuple(re.split('[;,]', names)[0].strip(' "') for _, names in found)


def _convention(num_classes: int) -> label_maps.Convention:
  return label_maps.Convention(num_classes, zero_is_ignored=True, fields=False)


class PackedAde20k(label_files.LabelFiles):
  """What `acmix_jax.tools.prepare ade20k` wrote; no TensorFlow is needed."""

  def __init__(self, directory: str | os.PathLike, split: str):
    """Reads the description of the data set, and no images.

    Args:
      directory: the folder of the prepared version itself, or a `data_dir`
        that holds just one, as in DIR/ade20k/1.0.0.
      split: 'train', 'validation', or parts of them: 'train[:99%]'.

    Raises:
      FileNotFoundError: nothing is there, packed or not.
      ValueError: several were found, or its format or the split is not known.
    """
    self._records = prepared.Records(
      directory, 'ade20k', split, f', or to the unpacked {ARCHIVE}'
    )
    self.origin = self._records.directory
    # After 'other', which does not count.
    self.class_names = tuple(self._records.features['label_map'].names[1:])
    self.convention = _convention(len(self.class_names))

  def __len__(self) -> int:
    return len(self._records)

  def read(self, index: int) -> label_files.Files:
    """See `LabelFiles`."""
    record = self._records[index]
    name = record['file_name'].decode()
    return label_files.Files(
      record['image'],
      record['label_map'],
      f'{name}.jpg in {self.origin}',
      f'{name}.png in {self.origin}',
    )

  def read_size(self, index: int) -> tuple[int, int]:
    """See `LabelFiles`."""
    return decode.read_size(io.BytesIO(self._records[index]['image']))
