"""Checksums of a checkpoint, by which damage to its files is found.

The file `manifest.json` of a checkpoint holds the size and the CRC-32 of each
of its other files. CRC-32 notices every change of up to 32 bits in a row, and
other accidents but for one in four billion; it is no seal against people.
"""

import json
import os
import pathlib
import zlib
from concurrent import futures

from acmix_jax.weights import names

NAME = 'manifest.json'
_CHUNK = 2**24  # bytes


class DamagedError(ValueError):
  """The files of a checkpoint are not what was saved."""


def write(checkpoint: pathlib.Path) -> None:
  """Writes the manifest of a checkpoint whose files are all there."""
  text = json.dumps(_checksums(checkpoint), indent=1)
  temporary = checkpoint / f'{NAME}.tmp'
  with temporary.open('w') as file:
    file.write(text)
    file.flush()
    os.fsync(file.fileno())
  temporary.replace(checkpoint / NAME)


def check(checkpoint: pathlib.Path) -> bool:
  """Compares a checkpoint with its manifest.

  Files that the manifest does not know are passed over.

  Returns:
    Whether there is a manifest; a training killed right after it saved has not
    written it.

  Raises:
    DamagedError: a file is missing or differs; the message names ten.
  """
  try:
    saved = json.loads((checkpoint / NAME).read_text())
    wanted = {name: tuple(entry) for name, entry in saved.items()}
  except FileNotFoundError:
    return False
  except (ValueError, AttributeError, TypeError) as error:
    raise DamagedError(
      f'The checkpoint {checkpoint} is damaged: {NAME} cannot be read.'
    ) from error
  found = _checksums(checkpoint)
  problems = names.listing(
    {
      'missing': wanted.keys() - found.keys(),
      'of another size': [
        f'{name} ({found[name][0]} bytes, {size} were saved)'
        for name, (size, _) in wanted.items()
        if name in found and found[name][0] != size
      ],
      'of another content': [
        name
        for name, (size, checksum) in wanted.items()
        if name in found
        and found[name][0] == size
        and found[name][1] != checksum
      ],
    }
  )
  if problems:
    raise DamagedError(
      f'The checkpoint {checkpoint} is damaged. Files: {problems}'
    )
  return True


def _checksums(checkpoint):
  """(size, CRC-32) of each file, by its path within the checkpoint."""
  paths = [
    path
    for path in sorted(checkpoint.rglob('*'))
    if path.is_file() and not path.name.startswith(NAME)
  ]
  # zlib releases the interpreter's lock.
  with futures.ThreadPoolExecutor() as pool:
    entries = list(pool.map(_checksum, paths))
  return {
    str(path.relative_to(checkpoint)): entry
    for path, entry in zip(paths, entries, strict=True)
  }


def _checksum(path):
  size = checksum = 0
  with path.open('rb') as file:
    while chunk := file.read(_CHUNK):
      size += len(chunk)
      checksum = zlib.crc32(chunk, checksum)
  return size, checksum
