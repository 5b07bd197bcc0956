"""What the input pipeline asks of a data set."""

import dataclasses
from typing import Any, Protocol

import numpy as np

from acmix_jax.data import label_maps


class Source(Protocol):
  """A set of examples with random access, before decoding.

  It opens its files when it is first read and can be pickled, so that it can be
  sent to worker processes.

  Attributes:
    canvases: int [n], the canvas of each example; examples of different ones
      never share a batch. None: all examples share one.
  """

  canvases: np.ndarray | None

  def __len__(self) -> int:
    """Number n of examples."""

  def __getitem__(self, index: int) -> dict[str, Any]:
    """Reads one example.

    Returns:
      What the transform takes, e.g. `image`: the bytes of an image file, or
      uint8 RGB [h, w, 3]; and `name`: a file name, or whatever leads a person
      to the example, for messages.

    Raises:
      decode.DecodeError, OSError: the example cannot be read.
    """

  def blank(self, index: int) -> dict[str, Any]:
    """An example that counts nothing, in place of example `index`.

    Returns:
      The keys of example `index`, on the same canvas; `name` is not needed.
    """


class LabelledImages:
  """Base of the sources of images with one label each; all share a canvas.

  The examples have `image`, `label` (int32) and `name`.

  Attributes:
    class_names: names of the classes; a label is an index into them.
    origin: where the images come from, for the log.
  """

  class_names: tuple[str, ...]
  origin: str
  canvases = None

  @property
  def num_classes(self) -> int:
    """Number of classes."""
    return len(self.class_names)

  def blank(self, index: int) -> dict[str, Any]:
    """A black pixel of the first class."""
    del index
    return {'image': np.zeros((1, 1, 3), np.uint8), 'label': np.int32(0)}


class LabelMaps:
  """Base of the sources of images with a class for each pixel.

  The examples have `image`, `label_map` (uint8 [h, w]: the classes, 255 where a
  pixel does not count, whatever the files hold) and `name`. All share a canvas,
  as training needs it; see `OnCanvases` for evaluation.

  Attributes:
    class_names: names of the classes; a label is an index into them.
    origin: where the images come from, for the log.
    sizes: heights and widths of the images, int32 [n, 2].
  """

  class_names: tuple[str, ...]
  origin: str
  sizes: np.ndarray
  canvases = None

  @property
  def num_classes(self) -> int:
    """Number of classes."""
    return len(self.class_names)

  def blank(self, index: int) -> dict[str, Any]:
    """A black image of the size of example `index`, without labels."""
    height, width = self.sizes[index].tolist()
    return {
      'image': np.zeros((height, width, 3), np.uint8),
      'label_map': np.full((height, width), label_maps.IGNORED, np.uint8),
    }


@dataclasses.dataclass(frozen=True)
class OnCanvases:
  """A source whose examples are put on canvases.

  They have `canvas` besides, the number of their own.

  Attributes:
    source: the examples; its blanks have the sizes of those they stand for.
    canvases: the canvas of each example, int [n].
  """

  source: Source
  canvases: np.ndarray

  def __len__(self) -> int:
    return len(self.source)

  def __getitem__(self, index: int) -> dict[str, Any]:
    return {**self.source[index], 'canvas': self.canvases[index]}

  def blank(self, index: int) -> dict[str, Any]:
    """The blank of the source, on the canvas of example `index`."""
    return {**self.source.blank(index), 'canvas': self.canvases[index]}
