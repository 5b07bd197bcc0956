"""What the sources share whose label maps are stored as PNG files."""

import abc
import functools
from concurrent import futures
from typing import Any, NamedTuple

import numpy as np

from acmix_jax.data import decode, label_maps
from acmix_jax.data.sources import source

_THREADS = 16  # To read headers: what is waited for is the disk.


class Files(NamedTuple):
  """The files of an example, encoded, and what to call them."""

  image: bytes
  label: bytes
  image_name: str
  label_name: str


class LabelFiles(source.LabelMaps, abc.ABC):
  """Base of the sources whose label maps are stored as PNG files.

  Attributes:
    convention: what the numbers in the label files mean.
  """

  convention: label_maps.Convention

  @abc.abstractmethod
  def __len__(self) -> int:
    """Number of examples."""

  @abc.abstractmethod
  def read(self, index: int) -> Files:
    """Reads the files of an example.

    Raises:
      decode.DecodeError, OSError: they cannot be read.
    """

  @abc.abstractmethod
  def read_size(self, index: int) -> tuple[int, int]:
    """Height and width of an image, from the header of its file.

    Raises:
      decode.DecodeError, OSError: it cannot be read.
    """

  def __getitem__(self, index: int) -> dict[str, Any]:
    """Reads an example, its label map decoded.

    Raises:
      decode.DecodeError, OSError: a file cannot be read, or a label is unknown.
      label_maps.LabelError: the label file is of a form that says no classes.
    """
    files = self.read(index)
    try:
      label_map = self.convention.apply(label_maps.read(files.label))
    except (decode.DecodeError, label_maps.LabelError) as error:
      raise type(error)(f'{files.label_name}: {error}') from error
    return {
      'image': files.image,
      'label_map': label_map,
      'name': files.image_name,
    }

  @functools.cached_property
  def sizes(self) -> np.ndarray:
    """Heights and widths of the images, int32 [n, 2], read from the headers.

    An image that is damaged or gone has the size of another one, to stand on
    its canvas until that is found out.

    Raises:
      OSError: the disk fails. To pass that over could leave the processes that
        share an evaluation with different canvases.
    """
    with futures.ThreadPoolExecutor(_THREADS) as pool:
      sizes = list(pool.map(self._read_size_or_none, range(len(self))))
    known = next((size for size in sizes if size), (1, 1))
    return np.array([size or known for size in sizes], np.int32)

  def _read_size_or_none(self, index: int) -> tuple[int, int] | None:
    try:
      return self.read_size(index)
    except (decode.DecodeError, FileNotFoundError, PermissionError):
      return None
