"""Reading files that may be damaged, gone or on a dead mount."""

import contextlib
import os
import stat
from collections.abc import Iterator
from typing import BinaryIO

from acmix_jax.data import decode, stalls


def read(path: str) -> bytes:
  """The content of a file; what takes very long is named in the log.

  Raises:
    decode.DecodeError: it is no regular file.
    OSError: it cannot be read.
  """
  with _opened(path) as file:
    return file.read()


def read_size(path: str) -> tuple[int, int]:
  """Height and width of an image, see `decode.read_size`, as `read` reads."""
  with _opened(path) as file:
    return decode.read_size(file)


@contextlib.contextmanager
def _opened(path: str) -> Iterator[BinaryIO]:
  def open_at_once(path, flags):
    # A FIFO would be waited for without end, also when the program ends.
    return os.open(path, flags | os.O_NONBLOCK)

  with stalls.watched(path), open(path, 'rb', opener=open_at_once) as file:
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
      raise decode.DecodeError(f'{path} is no regular file')
    yield file
