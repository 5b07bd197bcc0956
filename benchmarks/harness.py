"""What the benchmarks share: turns, PyTorch peers, tables and records.

Contestants take turns in one run, never at the same time, so that whatever
slows the machine slows all of them; a ratio is the median of the ratios of the
rounds. Both sides use every core the process may use, and `taskset -c 0,1
python -m benchmarks.X` gives both the same two.
"""

import argparse
import contextlib
import datetime
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax

_ROOT = pathlib.Path(__file__).parents[1]
_PACKAGES = ('jax', 'jaxlib', 'flax', 'numpy', 'opencv-python-headless')
# Worker threads of either side spin for a while after their work.
_PAUSE_SECONDS = 0.05

_LOAD_AT_START = os.getloadavg()[0]
_BUSY = 0.5

# Spinning until all are done, PyTorch's threads took up to thirty times as long
# on a machine with other work. Asleep, they also leave ours alone.
_PEER_ENVIRONMENT = {'OMP_WAIT_POLICY': 'PASSIVE'}

# A peer on the same GPU needs memory, too; read when jax first uses the device.
os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')

MIB = 2**20

T = TypeVar('T')
# Does its work that many times and returns the seconds it took in all.
Contestant = Callable[[int], float]


class UnavailableError(RuntimeError):
  """A contestant that cannot run here."""


def announce(what: str) -> None:
  """Says what is measured next, beside the table."""
  print(f'{what} ...', file=sys.stderr, flush=True)


def interleave(
  runs: dict[str, Callable[[], T]], rounds: int
) -> dict[str, list[T]]:
  """Results by name; in each round every one runs once, in order."""
  results = {name: [] for name in runs}
  for _ in range(rounds):
    for name, run in runs.items():
      time.sleep(_PAUSE_SECONDS)
      results[name].append(run())
  return results


def take_turns(
  contestants: dict[str, Contestant], rounds: int, turn_seconds: float
) -> dict[str, list[float]]:
  """Seconds of one piece of work, by name and round.

  Args:
    contestants: of which each first does its work once, uncounted.
    rounds: turns of each.
    turn_seconds: work is repeated within a turn for about that long.
  """

  def turn(run):
    calls = max(1, math.ceil(turn_seconds / run(1)))
    return lambda: run(calls) / calls

  return interleave({k: turn(run) for k, run in contestants.items()}, rounds)


def ratio(above: Sequence[float] | None, below: Sequence[float] | None) -> Any:
  """Median of above / below over the rounds; None without either."""
  if above is None or below is None:
    return None
  return statistics.median(a / b for a, b in zip(above, below, strict=True))


def compiled_contestant(compiled: Callable, *args: Any) -> Contestant:
  """A compiled jax function on arguments that it does not consume."""

  def run(calls):
    start = time.perf_counter()
    for _ in range(calls):
      results = compiled(*args)
    jax.block_until_ready(results)
    return time.perf_counter() - start

  return run


class Peer:
  """A contestant in PyTorch, in a process of its own; see `torch_peers`.

  Its threads wait asleep unless the environment sets OMP_WAIT_POLICY.

  Attributes:
    torch_version: of its interpreter.

  Raises:
    UnavailableError: the interpreter, PyTorch, the official code or a device
      is missing, or the work failed.
  """

  def __init__(self, python: str, request: dict[str, Any]):
    device = {'cpu': 'cpu', 'gpu': 'cuda'}.get(jax.default_backend())
    if device is None:
      raise UnavailableError(f'no PyTorch peer on {jax.default_backend()}')
    request = request | {'device': device, 'threads': count_cores()}
    try:
      self._process = subprocess.Popen(
        [python, '-m', 'benchmarks.torch_peers', json.dumps(request)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=_ROOT,
        env=_PEER_ENVIRONMENT | os.environ,
      )
    except OSError as error:
      raise UnavailableError(str(error)) from error
    try:
      self.torch_version = self._read()['torch']
    except UnavailableError:
      self.close()
      raise

  def __call__(self, calls: int) -> float:
    """See `Contestant`."""
    self._process.stdin.write(f'{calls}\n')
    self._process.stdin.flush()
    return self._read()['seconds']

  def __enter__(self):
    return self

  def __exit__(self, *error):
    self.close()

  def close(self) -> None:
    """Ends the process."""
    self._process.kill()
    self._process.communicate()

  def _read(self):
    line = self._process.stdout.readline()
    if not line:
      status = self._process.wait()
      raise UnavailableError(f'its process ended with status {status}')
    reply = json.loads(line)
    if 'error' in reply:
      raise UnavailableError(reply['error'])
    return reply


def start_peers(
  stack: contextlib.ExitStack,
  requests: dict[str, dict[str, Any]],
  python: str,
  notes: list[str],
) -> dict[str, Peer]:
  """Starts the peers that run here; the notes say which do not, and why.

  Args:
    stack: ends them.
    requests: by name, see `torch_peers`.
    python: interpreter that has PyTorch.
    notes: gets lines for the reader.
  """
  peers = {}
  for name, request in requests.items():
    try:
      peers[name] = stack.enter_context(Peer(python, request))
      policy = (_PEER_ENVIRONMENT | os.environ)['OMP_WAIT_POLICY']
      version = peers[name].torch_version
      notes.append(f'Peers: PyTorch {version}, OMP_WAIT_POLICY={policy}.')
    except UnavailableError as error:
      notes.append(f'{name}: not available: {error}.')
  return peers


def count_cores() -> int:
  """Cores that this process and its children may use."""
  return len(os.sched_getaffinity(0))


def median_ms(seconds: Sequence[float]) -> float:
  """Median in milliseconds."""
  return statistics.median(seconds) * 1e3


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
  """A Markdown table with aligned columns; floats get three digits."""
  cells = [header, *[[_cell(value) for value in row] for row in rows]]
  widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
  rule = ['-' * width for width in widths]
  return '\n'.join(
    f'| {" | ".join(map(str.ljust, line, widths))} |'
    for line in [cells[0], rule, *cells[1:]]
  )


def _cell(value):
  if value is None:
    return ''
  if not isinstance(value, float):
    return str(value)
  digits = 2 - math.floor(math.log10(abs(value))) if value else 0
  return f'{value:,.{max(0, digits)}f}'


def list_of(parse: Callable[[str], T]) -> Callable[[str], list[T]]:
  """The type of an option that takes several values, with commas between."""
  return lambda text: [parse(part) for part in text.split(',')]


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the options of all benchmarks."""
  name = parser.prog.rpartition('.')[2]
  parser.add_argument(
    '--rounds', type=int, default=5, help='turns of each (default: 5)'
  )
  parser.add_argument(
    '--turn_seconds',
    type=float,
    default=0.5,
    help='least length of a turn (default: %(default)s)',
  )
  parser.add_argument(
    '--json',
    type=pathlib.Path,
    default=_ROOT / 'benchmarks' / 'results' / f'{name}.json',
    metavar='FILE',
    help='where the record goes (default: benchmarks/results)',
  )


def add_peer_arguments(
  parser: argparse.ArgumentParser, **repositories: str
) -> None:
  """Adds where PyTorch and the official code are."""
  parser.add_argument(
    '--torch_python',
    default=sys.executable,
    metavar='FILE',
    help='interpreter that has PyTorch (default: this one)',
  )
  for name, repository in repositories.items():
    parser.add_argument(
      f'--{name}', default='', metavar='DIR', help=f'copy of {repository}'
    )


def report(
  args: argparse.Namespace,
  header: Sequence[str],
  rows: Sequence[dict[str, Any]],
  notes: Sequence[str],
) -> None:
  """Prints the columns of the header and writes the rows as JSON.

  Args:
    args: parsed options, `json` among them.
    header: names of the columns, which are keys of each row.
    rows: what was measured; keys that are no columns go to the record alone.
    notes: what the reader must know; each is printed once.
  """
  notes = list(dict.fromkeys(notes))
  if _LOAD_AT_START > _BUSY:
    notes.append(
      f'Not to be trusted: the load average was {_LOAD_AT_START:.1f} at the '
      'start, and waiting threads slow the contestants unequally.'
    )
  print(table(header, [[row[name] for name in header] for row in rows]))
  print('\n'.join(notes))
  record = {
    'date': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
    'commit': _commit(),
    'machine': {
      'cpu': _cpu_name(),
      'cores': count_cores(),
      'load': _LOAD_AT_START,
      'device': jax.devices()[0].device_kind,
    },
    'versions': {'python': platform.python_version()}
    | {name: importlib.metadata.version(name) for name in _PACKAGES},
    'arguments': vars(args) | {'json': str(args.json)},
    'rows': rows,
    'notes': notes,
  }
  args.json.parent.mkdir(parents=True, exist_ok=True)
  args.json.write_text(json.dumps(record, indent=2) + '\n')
  print(f'Written to {args.json}')


def _commit():
  command = ['git', 'describe', '--always', '--dirty', '--abbrev=12']
  try:
    result = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True)
  except OSError:
    return ''
  return result.stdout.strip()


def _cpu_name():
  try:
    lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
  except OSError:
    return platform.processor()
  names = [x.partition(': ')[2] for x in lines if x.startswith('model name')]
  return names[0] if names else platform.processor()
