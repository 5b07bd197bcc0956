r"""Counts the parameters and multiply-adds of models: the paper's Table 1.

    acmix-jax cost resnet50_acmix swin_tiny [--json] \
        [--image_size=224 | HxW]
    acmix-jax cost upernet:swin_tiny --image_size=512x2048
    acmix-jax cost mask_rcnn:swin_tiny --image_size=800x1280

The model is traced on one image and the products of its own program are
counted, exactly: a MAC is one multiply-add of a convolution, a matrix product
or a weighted sum; biases, normalisation, activations, softmax and the resizing
of maps are free. The program is that of the official code: windows are
unfolded, the fully connected layer comes before the shifts. The faster
implementations compute the same from more or fewer products.

Of each block's operator, stage I is the projection and stage II what gathers
its results: attention with its output projection, and the convolution path.

"As in Table 1" counts three things as the paper does. The attention of a layer
with strides is computed for all pixels, of which those between the strides are
dropped; our models and the official code drop them first. A k x k convolution
is k*k 1x1 convolutions (stage I), whose results are shifted and summed (stage
II, one addition each: they are no MACs of the model). PVT is not in Table 1,
and of its reduction of keys and values the paper names no stage.

A head of dense prediction on a backbone, HEAD:BACKBONE, is listed by part. Its
parameters are those of all parts, its MACs those of a prediction: the auxiliary
head is for training alone. Of detectors the networks count, as in mmdetection:
box heads on 1000 regions and mask heads on 100, without what finds the regions.
"""

import argparse
import json
import re
import sys
from collections.abc import Sequence

from acmix_jax.tools.cost.counting import Cost, Stages, count

# What the paper prints, in 10^9 MACs, at 224 x 224.
_PRINTED = {
  'resnet50': (1.85, 0.01),
  'resnet50_attention': (0.96, 0.19),
  'resnet50_acmix': (0.96, 0.35),
  'san19': (1.29, 0.72),
  'san19_acmix': (1.29, 0.89),
  'swin_tiny': (1.04, 0.49),
  'swin_tiny_acmix': (1.04, 0.64),
}
_PRINTED_SIZE = (224, 224)


def _as_json(cost: Cost) -> dict:
  return {
    'model': cost.model,
    'params': cost.params,
    'macs': cost.macs,
    'parts': {name: part._asdict() for name, part in cost.parts.items()},
    'stage1_macs': cost.stage1_macs,
    'stage2_macs': cost.stage2_macs,
    'table1': cost.table1 and cost.table1._asdict(),
  }


def _table(costs: list[Cost]) -> str:
  """Aligned columns and notes; the MACs of stages are in 10^9."""
  rows = [
    ('', '', '', 'model', '', 'as in Table 1', '', 'paper', ''),
    ('model', 'parameters', 'MACs', *('stage I', 'stage II') * 3),
  ]
  notes = []
  for cost in costs:
    printed = None
    if cost.image_size == _PRINTED_SIZE:
      printed = _PRINTED.get(cost.model)
    rows.append(
      (
        cost.model,
        f'{cost.params:,}',
        f'{cost.macs:,}',
        f'{cost.stage1_macs / 1e9:.3f}',
        f'{cost.stage2_macs / 1e9:.3f}',
        *(_with_shares(cost.table1) if cost.table1 else '--'),
        *([f'{macs:.2f}' for macs in printed] if printed else '--'),
      )
    )
    if cost.parts.keys() != {'backbone', 'head'}:  # It is no classifier.
      rows += [
        (f'  {name}', f'{part.params:,}', f'{part.macs:,}', *[''] * 6)
        for name, part in cost.parts.items()
      ]
    if printed:
      notes += _differences(cost, printed)
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = [
    '  '.join(
      [row[0].ljust(widths[0])]
      + [
        cell.rjust(width)
        for cell, width in zip(row[1:], widths[1:], strict=True)
      ]
    )
    for row in rows
  ]
  return '\n'.join(lines + notes)


def _with_shares(stages: Stages) -> list[str]:
  total = sum(stages)
  return [f'{macs / 1e9:.2f} ({macs / total:3.0%})' for macs in stages]


def _differences(cost: Cost, printed: tuple[float, float]) -> list[str]:
  """Notes on figures of the paper that the count does not give."""
  return [
    f'{cost.model}: the paper prints {theirs:.2f} for stage {stage}, the count '
    f'is {ours / 1e9:.2f} ({ours / 1e9 - theirs:+.2f}), unexplained.'
    for stage, ours, theirs in zip(
      ('I', 'II'), cost.table1, printed, strict=True
    )
    if f'{ours / 1e9:.2f}' != f'{theirs:.2f}'
  ]


def _image_size(text: str) -> tuple[int, int]:
  match = re.fullmatch(r'(\d+)(?:x(\d+))?', text)
  if not match:
    raise argparse.ArgumentTypeError(f'{text!r} is neither N nor HxW.')
  height, width = match.groups()
  return int(height), int(width or height)


def main(argv: Sequence[str] | None = None) -> int:
  """Returns the exit status: 2 for an unknown model or an unfit size."""
  parser = argparse.ArgumentParser(
    prog='acmix-jax cost',
    description="Counts parameters and multiply-adds: the paper's Table 1.",
  )
  parser.add_argument('models', nargs='+', metavar='MODEL|HEAD:BACKBONE')
  parser.add_argument('--json', action='store_true', help='print a JSON list')
  parser.add_argument(
    '--image_size',
    type=_image_size,
    default=(224, 224),
    metavar='N|HxW',
    help='pixels (default: 224)',
  )
  args = parser.parse_args(argv)
  try:
    costs = [count(name, args.image_size) for name in args.models]
  except ValueError as error:
    print(f'cost: {error}', file=sys.stderr)
    return 2
  if args.json:
    print(json.dumps([_as_json(cost) for cost in costs], indent=2))
  else:
    print(_table(costs))
  return 0


if __name__ == '__main__':
  sys.exit(main())
