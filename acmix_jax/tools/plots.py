r"""Draws a training: its curves, path weights of ACmix, precision of detectors.

    acmix-jax plots WORKDIR [--out=DIR]

Reads WORKDIR/metrics.jsonl and writes curves.png (loss, score, learning rate)
and, for a model with ACmix, path_weights.png: |alpha|, |beta| and their ratio
in each layer, at the last step as in the paper's figure and over the steps.
For a detector it reads what the last evaluation left in WORKDIR/evaluation.npz,
too, and writes precision_recall.png (at each overlap, the mean of the classes;
of each class at an overlap of 0.5) and class_precision.png: the AP of each
class. Matplotlib is needed: pip install 'acmix-jax[plots]'.
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

from acmix_jax.metrics import coco

Series = dict[str, list[tuple[int, float]]]

# What scores a model, of the tasks in turn.
_SCORES = ('top1', 'top5', 'mean_iou', 'box_ap', 'box_ap50', 'mask_ap')
# Classes of which a legend has room for the names.
_MOST_NAMES = 20
# Where a legend hides no curve.
_BESIDE = dict(bbox_to_anchor=(1, 1), loc='upper left', fontsize='small')
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


def read_precision(
  workdir: pathlib.Path,
) -> tuple[list[str], dict[str, np.ndarray]]:
  """Reads what the last evaluation of a detector left.

  Returns:
    Names of the classes; and of 'box' and perhaps 'mask' the precision, see
    `metrics.coco.AveragePrecision.precision`, nan for classes without objects.
    Both are empty where there is no such file.
  """
  try:
    with np.load(workdir / 'evaluation.npz') as file:
      arrays = dict(file)
  except FileNotFoundError:
    return [], {}
  return arrays.pop('class_names').tolist(), {
    name.removesuffix('_precision'): np.where(x < 0, np.nan, x)
    for name, x in arrays.items()
  }


def figures(workdir: str | os.PathLike) -> dict[str, Any]:
  """Draws a workdir, for files or for a notebook.

  Returns:
    Matplotlib figures: 'curves'; for a model with ACmix 'path_weights'; for a
    detector that was evaluated 'precision_recall' and 'class_precision'.

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
  class_names, precision = read_precision(pathlib.Path(workdir))
  if precision:
    drawn['precision_recall'] = draw_precision(class_names, precision)
    drawn['class_precision'] = draw_classes(class_names, precision)
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


def _new_figure(
  rows: int, columns: int, row_height: float = 3.5
) -> tuple[Any, Any]:
  try:
    # Not pyplot, which looks for a display and keeps every figure in memory.
    from matplotlib import figure
  except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
      "Plots need Matplotlib: pip install 'acmix-jax[plots]'."
    ) from error
  size = 5 * columns, row_height * rows
  new = figure.Figure(size, layout='constrained')
  return new, new.subplots(rows, columns, squeeze=False)


def draw_curves(series: Series) -> Any:
  """Draws loss, scores and learning rate as a Matplotlib figure."""
  panels = {
    'loss': ['train/loss', 'eval/loss'],
    'score': [
      f'{split}/{name}' for name in _SCORES for split in ('train', 'eval')
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


def draw_precision(
  class_names: list[str], precision: dict[str, np.ndarray]
) -> Any:
  """Draws the results of `read_precision` as a Matplotlib figure.

  A row for boxes and one for masks: on the left the mean of the classes at each
  overlap, with the AP at it; on the right each class at the least overlap.
  """
  figure, panels = _new_figure(len(precision), 2, row_height=4.5)
  for (kind, values), (over_overlaps, over_classes) in zip(
    precision.items(), panels, strict=True
  ):
    known = ~np.isnan(values).all(axis=(0, 1))
    lines = np.mean(values[:, :, known], axis=2)
    for share, overlap, line in zip(
      np.linspace(0, 1, len(lines)), coco.OVERLAPS, lines, strict=True
    ):
      label = f'{overlap:.2f}: {100 * line.mean():.1f}'
      color = (share, 0.2, 0.6)
      over_overlaps.plot(coco.RECALLS, line, color=color, label=label)
    over_overlaps.set_title(f'{kind}: mean of the classes')
    over_overlaps.legend(title='overlap: AP', **_BESIDE)
    for label in np.flatnonzero(known):
      over_classes.plot(
        coco.RECALLS, values[0, :, label], label=class_names[label]
      )
    over_classes.set_title(f'{kind}: each class at {coco.OVERLAPS[0]:.2f}')
    if known.sum() <= _MOST_NAMES:
      over_classes.legend(**_BESIDE)
  for axis in panels.flat:
    axis.set(xlabel='recall', ylabel='precision', ylim=(-0.02, 1.02))
  return figure


def draw_classes(
  class_names: list[str], precision: dict[str, np.ndarray]
) -> Any:
  """Draws the AP of each class as a Matplotlib figure, the best on top.

  Args:
    class_names: see `read_precision`.
    precision: see `read_precision`; the order is that of the first entry.
  """
  values = {kind: 100 * x.mean(axis=(0, 1)) for kind, x in precision.items()}
  first = next(iter(values.values()))
  order = np.argsort(first)[: np.isfinite(first).sum()]
  row_height = 1 + 0.18 * len(order) * len(values)
  figure, ((axis,),) = _new_figure(1, 1, row_height)
  places = np.arange(len(order))
  height = 0.8 / len(values)
  for number, (kind, x) in enumerate(values.items()):
    axis.barh(places - number * height, x[order], height, label=kind)
  middle = height * (len(values) - 1) / 2
  axis.set_yticks(places - middle, [class_names[label] for label in order])
  axis.set(xlabel='AP, %', xlim=(0, 100))
  axis.legend()
  return figure


def main(argv: Sequence[str] | None = None) -> int:
  """Returns the exit status: 2 if nothing can be drawn."""
  parser = argparse.ArgumentParser(
    prog='acmix-jax plots',
    description='Draws the curves of a training, and what its model learnt.',
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
