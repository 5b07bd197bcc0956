r"""Draws a training: its curves, and the path weights of its ACmix layers.

    python -m acmix_jax.tools.plots WORKDIR [--out=DIR]

From WORKDIR/metrics.jsonl come curves.png (loss, accuracy, learning rate) and,
of a model with ACmix, path_weights.png: |alpha|, |beta| and their ratio in each
layer at the last step, as in the paper's figure, and over the steps.
Matplotlib is needed: pip install 'acmix-jax[plots]'.
"""

import argparse
import json
import math
import pathlib
import re
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

Series = dict[str, list[tuple[int, float]]]

_ALPHA = re.compile(r'params/(.+)/alpha')


def read_series(workdir: pathlib.Path) -> Series:
  """The (step, value) pairs of each name of metrics.jsonl, in its order.

  A value that was not finite is nan. A last line that was cut off is skipped.

  Raises:
    FileNotFoundError: the workdir has no metrics.jsonl.
    ValueError: there are no figures in it.
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
    raise ValueError(f'{workdir / "metrics.jsonl"} holds no figures yet.')
  return series


def path_weights(
  series: Series,
) -> tuple[list[str], list[int], dict[str, np.ndarray]]:
  """The path weights of the ACmix layers.

  Layers are sorted by path with its numbers as numbers, which is their depth:
  stage1_2 is before stage1_10.

  Returns:
    The layers, the steps, and the weights |alpha|, |beta| and |alpha / beta|,
    each [layers, steps]. Without ACmix there are no layers and steps.
  """
  names = sorted(filter(_ALPHA.fullmatch, series), key=_numbered)
  layers = [_ALPHA.fullmatch(name)[1] for name in names]
  steps = [step for step, _ in series[names[0]]] if names else []

  def values(rate):
    paths = [f'params/{layer}/{rate}' for layer in layers]
    found = [[value for _, value in series[path]] for path in paths]
    return np.abs(np.reshape(found, (len(layers), len(steps))))

  alpha, beta = values('alpha'), values('beta')
  with np.errstate(divide='ignore', invalid='ignore'):
    ratio = alpha / beta
  weights = {'|alpha|': alpha, '|beta|': beta, '|alpha / beta|': ratio}
  return layers, steps, weights


def _numbered(name: str) -> list:
  return [
    int(part) if part.isdigit() else part for part in re.split(r'(\d+)', name)
  ]


def draw(workdir: pathlib.Path, out: pathlib.Path) -> list[pathlib.Path]:
  """Writes the figures of a workdir to a folder.

  Returns:
    The files: curves.png, and path_weights.png of a model with ACmix.

  Raises:
    FileNotFoundError: the workdir has no metrics.jsonl.
    ModuleNotFoundError: Matplotlib is not installed.
    ValueError: there is nothing to draw yet.
  """
  series = read_series(workdir)
  figures = {'curves.png': draw_curves(series)}
  layers, steps, weights = path_weights(series)
  if layers:
    figures['path_weights.png'] = draw_path_weights(steps, weights)
  out.mkdir(parents=True, exist_ok=True)
  for name, figure in figures.items():
    figure.savefig(out / name, dpi=150)
  return [out / name for name in figures]


def _new_figure(rows: int, columns: int) -> tuple[Any, Any]:
  try:
    # Without pyplot no display is looked for, and no figure stays in memory.
    from matplotlib import figure
  except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
      "Plots need Matplotlib: pip install 'acmix-jax[plots]'."
    ) from error
  new = figure.Figure((5 * columns, 3.5 * rows), layout='constrained')
  return new, new.subplots(rows, columns, squeeze=False)


def draw_curves(series: Series) -> Any:
  """A Matplotlib figure of loss, accuracy and learning rate."""
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
  """A Matplotlib figure of the results of `path_weights`.

  Above, over the depth at the last step; below, of each layer over the steps.
  """
  figure, panels = _new_figure(2, len(weights))
  for (title, values), (over_depth, over_steps) in zip(
    weights.items(), panels.T, strict=True
  ):
    depth = np.arange(1, len(values) + 1)
    over_depth.plot(depth, values[:, -1], marker='o')
    over_depth.set(title=f'{title} at step {steps[-1]}', xlabel='ACmix layer')
    over_depth.locator_params(axis='x', integer=True)
    for of_layer, colour in zip(values, depth / len(values), strict=True):
      over_steps.plot(steps, of_layer, color=(colour, 0.2, 0.6))
    over_steps.set(title=f'{title}, deeper layers redder', xlabel='step')
  for axis in panels[:, -1]:
    axis.set_yscale('log')
  return figure


def main(argv: Sequence[str] | None = None) -> int:
  """Returns the exit status: 2 if nothing can be drawn."""
  parser = argparse.ArgumentParser(
    prog='python -m acmix_jax.tools.plots',
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
