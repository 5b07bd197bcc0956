r"""Counts the parameters and multiply-adds of models: the paper's Table 1.

    python -m acmix_jax.tools.cost resnet50_acmix swin_tiny [--json] \
        [--image_size=224 | HxW]

The model is traced on one image and the products of its own program are
counted, exactly: a MAC is one multiply-add of a convolution, a matrix product
or a weighted sum; biases, normalisation, activations and softmax are free. The
program is that of the official code: windows are unfolded, maps are mixed
before they are shifted. The faster implementations compute the same from more
or fewer products.

Of each mixing layer, stage I is the projection and stage II what gathers its
results: attention with its output projection, and the convolution path.

"As in Table 1" counts three things as the paper does. The attention of a layer
with strides is computed for all pixels, of which those between the strides are
dropped; our models and the official code drop them first. A k x k convolution
is k*k 1x1 convolutions (stage I), whose results are shifted and summed (stage
II, one addition each: they are no MACs of the model). PVT is not in Table 1,
and of its reduction of keys and values the paper names no stage.
"""

import argparse
import dataclasses
import json
import math
import re
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.extend
import jax.numpy as jnp
from flax import linen as nn

from acmix_jax import models
from acmix_jax.models.backbones import resnet, san, swin
from acmix_jax.nn import local_attention

# What the paper prints, in 10^9 MACs.
_PRINTED = {
  'resnet50': (1.85, 0.01),
  'resnet50_attention': (0.96, 0.19),
  'resnet50_acmix': (0.96, 0.35),
  'san19': (1.29, 0.72),
  'san19_acmix': (1.29, 0.89),
  'swin_tiny': (1.04, 0.49),
  'swin_tiny_acmix': (1.04, 0.64),
}
_IN_TABLE1 = (resnet.ResNet, san.SAN, swin.Swin)
# Those with the products of the official code.
_IMPLEMENTATIONS = {
  'attention_implementation': 'patches',
  'convolution_implementation': 'shifts',
}
# Of the name stack SAN/SAN.features/stage0_1/mix/attention.project/query.
_MIXING_LAYER = re.compile(r'\.\w+/([^.]*?/mix)(?:$|/)(.*)')


class Stages(NamedTuple):
  """MACs of the two stages."""

  stage1: int
  stage2: int


@dataclasses.dataclass(frozen=True)
class Cost:
  """What one image costs.

  Attributes:
    model: name, or class of the model.
    image_size: (height, width).
    params: parameters.
    macs: multiply-adds of the whole model.
    layers: those of each mixing layer, by its path.
    table1: those of all mixing layers, counted as in the paper's Table 1; None
      where the paper does not say how.
  """

  model: str
  image_size: tuple[int, int]
  params: int
  macs: int
  layers: dict[str, Stages]
  table1: Stages | None

  @property
  def stage1_macs(self) -> int:
    """Stage I of all mixing layers."""
    return sum(layer.stage1 for layer in self.layers.values())

  @property
  def stage2_macs(self) -> int:
    """Stage II of all mixing layers."""
    return sum(layer.stage2 for layer in self.layers.values())


def count(
  model: str | nn.Module, image_size: int | tuple[int, int] = 224
) -> Cost:
  """Counts a model on one image; nothing is compiled or computed.

  Args:
    model: a registered name, or a classifier of `create_model`, whose
      implementations are replaced by those of the official code.
    image_size: pixels of a side, or (height, width).

  Raises:
    KeyError: no model has that name.
    ValueError: the image is too small for the model.
  """
  name = model if isinstance(model, str) else type(model).__name__
  if isinstance(model, str):
    model = models.create_model(model)
  fields = _IMPLEMENTATIONS.keys() & {
    field.name for field in dataclasses.fields(model)
  }
  model = model.clone(**{field: _IMPLEMENTATIONS[field] for field in fields})
  size = (image_size,) * 2 if isinstance(image_size, int) else image_size
  images = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
  variables = jax.eval_shape(model.init, jax.random.key(0), images)

  products = _trace(model, variables, images)
  layers = _by_layer(products)
  table1 = None
  if isinstance(model, _IN_TABLE1):
    with nn.intercept_methods(_before_strides):
      table1 = _total(
        _by_layer(_trace(model, variables, images), as_in_table1=True)
      )
  return Cost(
    model=name,
    image_size=size,
    params=sum(leaf.size for leaf in jax.tree.leaves(variables['params'])),
    macs=sum(product.macs for product in products),
    layers=layers,
    table1=table1,
  )


class _Product(NamedTuple):
  """A product of the program: the scope it is in and its multiply-adds.

  Of a convolution, `channels` are the inputs of each output; 1 otherwise.
  """

  scope: str
  macs: int
  channels: int = 1


def _trace(model, variables, images) -> list[_Product]:
  jaxpr = jax.make_jaxpr(model.apply)(variables, images)
  return list(_products(jaxpr.jaxpr))


def _products(jaxpr, scope: str = '', times: int = 1) -> Iterator[_Product]:
  """The products of a program, those of loops as often as they run."""
  for equation in jaxpr.eqns:
    # Names within an inner program start afresh.
    inner_scope = f'{scope}/{equation.source_info.name_stack}'
    names = inner_scope.split('/')
    primitive, params = equation.primitive.name, equation.params
    results = times * math.prod(equation.outvars[0].aval.shape)
    if primitive == 'dot_general':
      shape = equation.invars[0].aval.shape
      (contracted, _), _ = params['dimension_numbers']
      terms = math.prod(shape[axis] for axis in contracted)
      if contracted:  # Otherwise nothing is added up: it repeats an array.
        yield _Product(inner_scope, results * terms)
    elif primitive == 'conv_general_dilated' and 'unfold' not in names:
      shape = equation.invars[1].aval.shape
      outputs, channels, *_ = params['dimension_numbers'].rhs_spec
      terms = math.prod(shape) // shape[outputs]
      yield _Product(inner_scope, results * terms, shape[channels])
    elif primitive == 'mul' and 'multiply_add' in names:
      yield _Product(inner_scope, results)
    length = params['length'] if primitive == 'scan' else 1
    inners = jax.extend.core.jaxprs_in_params(params)
    by_platform = params.get('branches_platforms')
    if by_platform:
      # Each does the same in its own way, on GPU by XLA's plain operations.
      [plain] = [
        branch.jaxpr
        for branch, platforms in zip(
          params['branches'], by_platform, strict=True
        )
        if platforms is None or 'cuda' in platforms
      ]
      inners = [plain]
    for inner in inners:
      found = list(_products(inner, inner_scope, times * length))
      unknown = primitive in ('cond', 'while') and not by_platform
      assert not found or not unknown, inner_scope
      yield from found


def _by_layer(
  products: list[_Product], *, as_in_table1: bool = False
) -> dict[str, Stages]:
  """Sums the products of each mixing layer by stage."""
  layers = {}
  for product in products:
    match = _MIXING_LAYER.search(product.scope)
    if not match:
      continue
    name, place = match.groups()
    stage1, stage2 = layers.get(name, (0, 0))
    # A convolution is the mixing layer itself, or else is in the second stage.
    convolution = not place
    if convolution or '.project/' in place:
      stage1 += product.macs
    else:
      stage2 += product.macs
    if convolution and as_in_table1:
      stage2 += product.macs // product.channels
    layers[name] = Stages(stage1, stage2)
  return layers


def _before_strides(next_function, args, kwargs, context):
  """Computes attention for all pixels, then drops those between the strides."""
  module = context.module
  if (
    not isinstance(module, local_attention.LocalAttention)
    or context.method_name != 'aggregate'
    or module.strides == 1
  ):
    return next_function(*args, **kwargs)
  dense = module.clone(strides=1, parent=None)
  out = dense.apply(module.variables, *args, **kwargs, method='aggregate')
  return out[:, :: module.strides, :: module.strides]


def _total(layers: dict[str, Stages]) -> Stages:
  return Stages(*(sum(macs) for macs in zip(*layers.values(), strict=True)))


def _as_json(cost: Cost) -> dict:
  return {
    'model': cost.model,
    'params': cost.params,
    'macs': cost.macs,
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
    prog='python -m acmix_jax.tools.cost',
    description="Counts parameters and multiply-adds: the paper's Table 1.",
  )
  parser.add_argument('models', nargs='+', metavar='MODEL')
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
  except (KeyError, ValueError) as error:
    print(f'cost: {error.args[0]}', file=sys.stderr)
    return 2
  if args.json:
    print(json.dumps([_as_json(cost) for cost in costs], indent=2))
  else:
    print(_table(costs))
  return 0


if __name__ == '__main__':
  sys.exit(main())
