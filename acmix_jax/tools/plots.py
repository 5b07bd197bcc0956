r"""Draws a training: its curves, and the path weights of its ACmix layers.

    acmix-jax plots WORKDIR [--out=DIR]

Reads WORKDIR/metrics.jsonl and writes curves.png (loss, accuracy, learning
rate) and, for a model with ACmix, path_weights.png: |alpha|, |beta| and their
ratio in each layer, at the last step as in the paper's figure and over the
steps. Matplotlib is needed: pip install 'acmix-jax[plots]'.
"""

import argparse
import json
import math
import os
import pathlib
import re
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

Series = dict[str, list[tuple[int, float]]]

_ALPHA = re.compile(r'params/(.+)/alpha')


def read_series(workdir: pathlib.Path) -> Series:
  """Reads the (step, value) pairs of each metric, in the order of the file.

  A value that was not finite is nan. A last line that was cut off is skipped.

  Raises:
    FileNotFoundError: the workdir has no metrics.jsonl.
    ValueError: the file holds no metrics.
  """
  series: Series = {}
  for line in (workdir / 'metrics.jsonl').read_text().splitlines():
    try:
      values = json.loads(line)
    except json.JSONDecodeError:
      continue
    step = values.pop('step')
    for name, value in values.items():
      value = math.nan if value is None else value
      series.setdefault(name, []).append((step, value))
  if not series:
    raise ValueError(f'{workdir / "metrics.jsonl"} holds no metrics yet.')
  return series


def path_weights(
  series: Series,
) -> tuple[list[str], list[int], dict[str, np.ndarray]]:
  """Collects the path weights of the ACmix layers.

  Layers are in the order of their depth: their paths are sorted with numbers as
  numbers, stage1_2 before stage1_10.

  Returns:
    The layers' paths, the steps, and |alpha|, |beta| and |alpha / beta|, each
    [layers, steps]. Without ACmix there are no layers and no steps.
  """
  names = sorted(filter(_ALPHA.fullmatch, series), key=_numbered)
  layers = [_ALPHA.fullmatch(name)[1] for name in names]
  steps = [step for step, _ in series[names[0]]] if names else []

  def absolute(weight):
    paths = [f'params/{layer}/{weight}' for layer in layers]
    values = [[value for _, value in series[path]] for path in paths]
    return np.abs(np.reshape(values, (len(layers), len(steps))))

  alpha, beta = absolute('alpha'), absolute('beta')
  with np.errstate(divide='ignore', invalid='ignore'):
    ratio = alpha / beta
  weights = {'|alpha|': alpha, '|beta|': beta, '|alpha / beta|': ratio}
  return layers, steps, weights


def _numbered(name: str) -> list:
  return [
    int(part) if part.isdigit() else part for part in re.split(r'(\d+)', name)
  ]


def figures(workdir: str | os.PathLike) -> dict[str, Any]:
  """Draws a workdir, for files or for a notebook.

  Returns:
    Matplotlib figures: 'curves' and, for a model with ACmix, 'path_weights'.

  Raises:
    FileNotFoundError: the workdir has no metrics.jsonl.
    ModuleNotFoundError: Matplotlib is not installed.
    ValueError: there is nothing to draw yet.
  """
  series = read_series(pathlib.Path(workdir))
  drawn = {'curves': draw_curves(series)}
  layers, steps, weights = path_weights(series)
  if layers:
    drawn['path_weights'] = draw_path_weights(steps, weights)
  return drawn


def draw(workdir: pathlib.Path, out: pathlib.Path) -> list[pathlib.Path]:
  """Writes the `figures` of a workdir into a folder.

  Returns:
    The files: NAME.png of each figure.
  """
  drawn = figures(workdir)
  out.mkdir(parents=True, exist_ok=True)
  for name, figure in drawn.items():
    figure.savefig(out / f'{name}.png', dpi=150)
  return [out / f'{name}.png' for name in drawn]


def _new_figure(rows: int, columns: int) -> tuple[Any, Any]:
  try:
    # Not pyplot, which looks for a display and keeps every figure in memory.
    from matplotlib import figure
  except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
      "Plots need Matplotlib: pip install 'acmix-jax[plots]'."
    ) from error
  new = figure.Figure((5 * columns, 3.5 * rows), layout='constrained')
  return new, new.subplots(rows, columns, squeeze=False)


def draw_curves(series: Series) -> Any:
  """Draws loss, accuracy and learning rate as a Matplotlib figure."""
  panels = {
    'loss': ['train/loss', 'eval/loss'],
    'accuracy': [
      f'{split}/{name}'
      for name in ('top1', 'top5')
      for split in ('train', 'eval')
    ],
    'learning rate': ['train/learning_rate'],
  }
  figure, ((*axes,),) = _new_figure(1, len(panels))
  for axis, (title, names) in zip(axes, panels.items(), strict=True):
    for name in names:
      if name in series:
        marker = 'o' if name.startswith('eval/') else None
        axis.plot(*zip(*series[name], strict=True), marker=marker, label=name)
    axis.set(title=title, xlabel='step')
    if axis.lines:
      axis.legend()
  return figure


def draw_path_weights(steps: list[int], weights: dict[str, np.ndarray]) -> Any:
  """Draws the results of `path_weights` as a Matplotlib figure.

  The upper row shows the weights at the last step over the depth, the lower row
  those of each layer over the steps.
  """
  figure, panels = _new_figure(2, len(weights))
  for (title, values), (over_depth, over_steps) in zip(
    weights.items(), panels.T, strict=True
  ):
    depth = np.arange(1, len(values) + 1)
    over_depth.plot(depth, values[:, -1], marker='o')
    over_depth.set(title=f'{title} at step {steps[-1]}', xlabel='ACmix layer')
    over_depth.locator_params(axis='x', integer=True)
    for layer, red in zip(values, depth / len(values), strict=True):
      over_steps.plot(steps, layer, color=(red, 0.2, 0.6))
    over_steps.set(title=f'{title}, deeper layers redder', xlabel='step')
  for axis in panels[:, -1]:
    axis.set_yscale('log')
  return figure


def main(argv: Sequence[str] | None = None) -> int:
  """Returns the exit status: 2 if nothing can be drawn."""
  parser = argparse.ArgumentParser(
    prog='acmix-jax plots',
    description='Draws the curves and path weights of a training.',
  )
  parser.add_argument('workdir', type=pathlib.Path, metavar='WORKDIR')
  parser.add_argument(
    '--out', type=pathlib.Path, help='folder of the PNGs (default: WORKDIR)'
  )
  args = parser.parse_args(argv)
  try:
    files = draw(args.workdir, args.out or args.workdir)
  except (OSError, ImportError, ValueError) as error:
    print(f'plots: {error}', file=sys.stderr)
    return 2
  print(*files, sep='\n')
  return 0


if __name__ == '__main__':
  sys.exit(main())
