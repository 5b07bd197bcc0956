"""What the input pipeline asks of a data set."""

from typing import Any, Protocol


class Source(Protocol):
  """A labelled set of images with random access.

  Attributes:
    class_names: names of the classes; a label is an index into them.
  """

  class_names: tuple[str, ...]

  @property
  def num_classes(self) -> int:
    """Number of classes."""

  def __len__(self) -> int:
    """Number of images."""

  def __getitem__(self, index: int) -> dict[str, Any]:
    """Reads one example.

    Returns:
      `image`: the bytes of an image file, or uint8 RGB [h, w, 3];
      `label`: int;
      `name`: a file name, or whatever leads a person to the image.

    Raises:
      decode.DecodeError, OSError: the image cannot be read.
    """
