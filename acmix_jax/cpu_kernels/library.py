"""The library of the kernels: compiled for this machine, and kept in a cache.

Others must not be able to write the cache, and a file in it counts only with
its checksum: what is loaded runs with the rights of the user, and a library
that was cut short ends the process with a bus error.
"""

import contextlib
import hashlib
import logging
import os
import pathlib
import platform
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator

import jax

_SOURCES = pathlib.Path(__file__).parent
_FLAGS = ('-std=c++17', '-O3', '-march=native', '-fPIC', '-shared')
# The compiler takes about 15 seconds.
_TIMEOUT_SECONDS = 300

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def built() -> Iterator[pathlib.Path]:
  """The library of the sources as they are, compiled if it is not in the cache.

  Without a cache it is in a temporary folder that goes when the context ends.

  Raises:
    FileNotFoundError: There is no compiler.
    ValueError: CXX is no command line.
    subprocess.SubprocessError: The compiler failed, `stderr` says why, or did
      not finish.
  """
  compiler = _compiler()
  name = f'kernels-{_key(compiler)}.so'
  cache = _cache()
  if cache is None:
    with tempfile.TemporaryDirectory(prefix='acmix_jax-') as folder:
      path = pathlib.Path(folder) / name
      _compile(compiler, path)
      yield path
    return
  path = cache / name
  if not _is_complete(path):
    # Processes that start together compile together; the last one's stays.
    with tempfile.TemporaryDirectory(dir=cache) as folder:
      new = pathlib.Path(folder) / name
      _compile(compiler, new)
      _keep(new, path)
  yield path


def _key(compiler: list[str]) -> str:
  """Digest of all that the library depends on."""
  version = _output([*compiler, '--version'])
  parts = [version, *compiler, *_FLAGS, jax.__version__, _processor()]
  parts += [path.read_text() for path in sorted(_SOURCES.glob('*.[ch]*'))]
  return hashlib.sha256('\0'.join(parts).encode()).hexdigest()[:16]


def _compile(compiler: list[str], path: pathlib.Path):
  logger.info('Compiling the kernels for CPU, in about 15 seconds.')
  sources = map(str, sorted(_SOURCES.glob('*.cc')))
  flags = [*_FLAGS, '-isystem', jax.ffi.include_dir()]
  # What it leaves when it is killed goes with the folder.
  _output([*compiler, *flags, *sources, '-o', str(path)], TMPDIR=path.parent)


def _keep(new: pathlib.Path, path: pathlib.Path):
  """Moves a library and its checksum into the cache, each whole or not."""
  checksum = new.with_suffix('.sha256')
  checksum.write_text(_checksum(new))
  for source in (new, checksum):
    with source.open('rb') as file:
      os.fsync(file.fileno())
    source.replace(path.with_suffix(source.suffix))


def _is_complete(path: pathlib.Path) -> bool:
  try:
    return path.with_suffix('.sha256').read_text() == _checksum(path)
  except FileNotFoundError:
    return False


def _checksum(path: pathlib.Path) -> str:
  return hashlib.sha256(path.read_bytes()).hexdigest()


def _compiler() -> list[str]:
  if os.environ.get('CXX'):
    return shlex.split(os.environ['CXX'])
  for name in ('c++', 'g++', 'clang++'):
    if path := shutil.which(name):
      return [path]
  raise FileNotFoundError(
    'no C++ compiler on the path; install g++, or name one in CXX.'
  )


def _output(command: list[str], **environment) -> str:
  """What a command prints; it ends with all that it started, or in time."""
  with subprocess.Popen(
    command,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    env=os.environ | {k: str(v) for k, v in environment.items()},
    start_new_session=True,
  ) as process:
    try:
      stdout, stderr = process.communicate(timeout=_TIMEOUT_SECONDS)
    except BaseException:
      os.killpg(process.pid, signal.SIGKILL)
      raise
  if process.returncode:
    raise subprocess.CalledProcessError(
      process.returncode, command, stdout, stderr
    )
  return stdout


def _processor() -> str:
  """What the compiler may use; homes are shared by unequal machines."""
  info = pathlib.Path('/proc/cpuinfo')
  lines = info.read_text().splitlines() if info.exists() else []
  flags = (line for line in lines if line.startswith(('flags', 'Features')))
  return platform.machine() + next(flags, platform.processor())


def _cache() -> pathlib.Path | None:
  """The folder of libraries; None if it cannot be written or trusted."""
  # A user without a home is a RuntimeError.
  with contextlib.suppress(OSError, RuntimeError):
    home = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
    folder = pathlib.Path(home) / 'acmix_jax'
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
      logger.warning(
        'Others can write %s, so the kernels for CPU are not kept there but '
        'compiled for each process; it should be yours, with `chmod go-w`.',
        folder,
      )
      return None
    if os.access(folder, os.W_OK):
      return folder
  return None
