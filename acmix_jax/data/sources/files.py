"""Reading files that may be damaged, gone or on a dead mount."""

import os
import stat

from acmix_jax.data import decode, stalls


def read(path: str) -> bytes:
  """The content of a file; what takes very long is named in the log.

  Raises:
    decode.DecodeError: it is no regular file.
    OSError: it cannot be read.
  """

  def open_at_once(path, flags):
    # A FIFO would be waited for without end, also when the program ends.
    return os.open(path, flags | os.O_NONBLOCK)

  with stalls.watched(path), open(path, 'rb', opener=open_at_once) as file:
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
      raise decode.DecodeError(f'{path} is no regular file')
    return file.read()
