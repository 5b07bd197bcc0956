r"""Drops the paths of ACmix layers that matter little, and says what it saves.

    acmix-jax collapse RUN --threshold=0.05 [--out=FILE]
    acmix-jax collapse RUN --layers='stage1_*=attention'
    acmix-jax collapse CONFIG RUN --threshold=0.05 [--config.FIELD=VALUE ...]

RUN is the workdir of a training, one of its checkpoints, or a .safetensors
file, which needs the CONFIG. A path is dropped whose share of |alpha| + |beta|
is below the threshold; or, in the layers that the patterns match, the one that
does not stand behind them: 'attention' or 'shift_convolution' is kept.

Printed are the weights of each layer, and the multiply-adds of an image, the
evaluation's metrics and the time of a prediction before and after. --out writes
the smaller network as a .safetensors file, for --config.init_from together with
the --config.model.block_operators that is printed.
"""

import argparse
import contextlib
import logging
import pathlib
import statistics
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

import jax
import ml_collections

from acmix_jax import weights
from acmix_jax.tools import config_file, cost, trained
from acmix_jax.train import build, evaluate
from acmix_jax.train import mesh as mesh_lib

# Predictions of either network that are timed, in turns.
_TIMES = 20


class Network:
  """A trained network on the devices of this process.

  Attributes:
    config: Its config.
    variables: Its variables.
    cost: Parameters and multiply-adds of an image of the evaluation.
    metrics: Metrics of the evaluation split.
    best_metric: Name of the one that tells how good it is.
    seconds: What the calls of `time` measured.
  """

  def __init__(self, config: ml_collections.ConfigDict, variables: dict):
    """Evaluates the network."""
    mesh = mesh_lib.make_mesh(ml_collections.ConfigDict(dict(data=-1, model=1)))
    evaluation = build.Evaluation(config, mesh)
    state = weights.assign(evaluation.variable_shapes, variables)
    params = state.pop('params')
    self.config, self.variables, self.seconds = config, variables, []
    self.metrics = evaluate.evaluate(evaluation, params, state)
    self.best_metric = evaluation.task.best_metric
    with contextlib.closing(evaluation.task.eval_data(0, 1)) as batches:
      batch = next(batches)
    self.cost = cost.count(evaluation.task.model, batch['image'].shape[1:3])
    batch = mesh_lib.to_devices(batch, mesh)
    self._predict = lambda: evaluation.predict(params, state, batch)

  @property
  def median(self) -> float:
    """Median of the times, in seconds."""
    return statistics.median(self.seconds)

  def time(self) -> None:
    """Measures the prediction of the evaluation's first batch once more."""
    start = time.perf_counter()
    jax.block_until_ready(self._predict())
    self.seconds.append(time.perf_counter() - start)


class Comparison(NamedTuple):
  """A network, and what it is without some paths.

  Attributes:
    before: The network.
    after: The smaller one.
    kept: The paths that blocks kept, see `weights.Collapsed`.
  """

  before: Network
  after: Network
  kept: dict[str, str]

  def __str__(self) -> str:
    """A line for each block, and what all of them save."""
    before, after = self.before, self.after
    rows = [('block', '|alpha|', '|beta|', 'kept', 'multiply-adds', '')]
    for block, path in self.kept.items():
      layer = before.variables['params']['backbone'][block]['operator']
      name = f'backbone/{block}/operator'
      old, new = (sum(x.cost.operators[name]) for x in (before, after))
      shown = [f'{abs(layer[x]):.3f}' for x in ('alpha', 'beta')]
      rows.append((block, *shown, path, f'{old:,}', f'-> {new:,}'))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
      '  '.join(cell.ljust(n) for cell, n in zip(row, widths, strict=True))
      for row in rows
    ]
    for what, of in (
      ('multiply-adds of an image', lambda x: f'{x.cost.macs:,}'),
      ('parameters', lambda x: f'{x.cost.params:,}'),
      (before.best_metric, lambda x: f'{x.metrics[x.best_metric]:.4f}'),
      ('median time of a batch', lambda x: f'{1e3 * x.median:.1f} ms'),
    ):
      lines.append(f'{what}: {of(before)} -> {of(after)}')
    return '\n'.join(line.rstrip() for line in lines)


def collapse(
  before: Network,
  *,
  threshold: float | None = None,
  layers: dict[str, str] | None = None,
) -> Comparison:
  """Drops paths of a network, see `weights.collapse`, and times both.

  Raises:
    ValueError: no path has so small a share, or see `weights.collapse`.
  """
  config = ml_collections.ConfigDict(before.config)
  less = weights.collapse(
    **config.model,
    variables=before.variables,
    threshold=threshold,
    layers=layers,
  )
  if not less.kept:
    raise ValueError('No path has so small a share: nothing would be dropped.')
  with config.unlocked():  # The config of an earlier version lacks the field.
    config.model.block_operators = less.block_operators
  after = Network(config, less.variables)
  for network in (before, after) * _TIMES:
    network.time()
  return Comparison(before, after, less.kept)


def _layers(text: str) -> dict[str, str]:
  pairs = [pair.partition('=') for pair in text.split(',')]
  return {pattern: path for pattern, _, path in pairs}


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog='acmix-jax collapse',
    usage='%(prog)s [CONFIG] RUN (--threshold=SHARE | --layers=BLOCK=PATH,'
    '...) [--out=FILE]',
    description='Drops paths of ACmix layers, and says what it saves. Fields '
    'of the config follow as --config.FIELD=VALUE.',
    allow_abbrev=False,
  )
  parser.add_argument('paths', nargs='+', help=argparse.SUPPRESS)
  choice = parser.add_mutually_exclusive_group(required=True)
  choice.add_argument(
    '--threshold', type=float, help='share below which a path is dropped'
  )
  choice.add_argument(
    '--layers', type=_layers, help='paths to keep, by patterns of the blocks'
  )
  parser.add_argument(
    '--out', type=pathlib.Path, help='.safetensors file of the smaller network'
  )
  return parser


def _config(given: Sequence[str], overrides: Sequence[str], path: pathlib.Path):
  """The config of the weights at a path, as what a `with` takes."""
  if len(given) > 1:
    raise ValueError(f'{" ".join(given)}: give at most a config and a run.')
  if given:
    return contextlib.nullcontext(config_file.load(given[0], overrides))
  if overrides:
    raise ValueError(
      f'{" ".join(overrides)}: fields can be set of a CONFIG alone.'
    )
  return trained.recorded(path)


def main(argv: Sequence[str] | None = None) -> int:
  """Returns the exit status: 2 for what cannot be done."""
  logging.basicConfig(format='collapse: %(message)s')
  args, overrides = _parser().parse_known_args(argv)
  try:
    if args.out and args.out.suffix != '.safetensors':
      raise ValueError(f'--out={args.out} must end in .safetensors.')
    *given, run = args.paths
    path = weights.find(run)
    with _config(given, overrides, path) as config:
      stored = weights.load_weights(path, average=config.load_average)
      found = collapse(
        Network(config, stored), threshold=args.threshold, layers=args.layers
      )
    print(found)
    if args.out:
      description = weights.load_description(path)
      weights.save_weights(args.out, found.after.variables, description)
      operators = found.after.config.model.block_operators
      print(
        f'{args.out} is for --config.init_from with '
        f'--config.model.block_operators="{operators}"'
      )
  except (OSError, ValueError) as error:
    print(f'collapse: {error}', file=sys.stderr)
    return 2
  return 0


if __name__ == '__main__':
  sys.exit(main())
