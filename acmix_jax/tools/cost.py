r"""Counts the parameters and multiply-adds of models: the paper's Table 1.

    python -m acmix_jax.tools.cost resnet50_acmix swin_tiny [--json] \
        [--image_size=224 | HxW]

The model is traced on one image and the products of its own program are
counted, exactly: a MAC is one multiply-add of a convolution, a matrix product
or a weighted sum; biases, normalisation, activations and softmax are free. The
program is that of the official code: windows are unfolded, the fully connected
layer comes before the shifts. The faster implementations compute the same from
more or fewer products.

Of each block's operator, stage I is the projection and stage II what gathers
its results: attention with its output projection, and the convolution path.

"As in Table 1" counts three things as the paper does. The attention of a layer
with strides is computed for all pixels, of which those between the strides are
dropped; our models and the official code drop them first. A k x k convolution
is k*k 1x1 convolutions (stage I), whose results are shifted and summed (stage
II, one addition each: they are no MACs of the model). PVT is not in Table 1,
and of its reduction of keys and values the paper names no stage.
"""

import argparse
import dataclasses
import enum
import json
import math
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.extend
import jax.numpy as jnp
from flax import linen as nn

from acmix_jax import models
from acmix_jax.models import classifier
from acmix_jax.models.backbones import resnet, san, swin
from acmix_jax.nn import acmix, attention, layers, local_attention
from acmix_jax.ops import cost_marks

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
_IN_TABLE1 = (resnet.ResNet, san.SAN, swin.Swin)
# Those with the products of the official code.
_IMPLEMENTATIONS = {
  'attention_implementation': 'patches',
  'convolution_implementation': 'shifts',
}
_PRINTED_SIZE = (224, 224)
# Between the stage and the path of an operator in the name of a scope.
_OF = ' of '


class Stages(NamedTuple):
  """MACs of the two stages."""

  stage1: int
  stage2: int


@dataclasses.dataclass(frozen=True)
class Cost:
  """What one image costs.

  Attributes:
    model: Name, or class of the backbone.
    image_size: (height, width).
    params: Parameters.
    macs: Multiply-adds of the whole model.
    operators: Multiply-adds of each block's operator, by its path.
    table1: Multiply-adds of all operators, counted as in the paper's Table 1;
      None where the paper does not say how.
  """

  model: str
  image_size: tuple[int, int]
  params: int
  macs: int
  operators: dict[str, Stages]
  table1: Stages | None

  @property
  def stage1_macs(self) -> int:
    """Stage I of all operators."""
    return sum(stages.stage1 for stages in self.operators.values())

  @property
  def stage2_macs(self) -> int:
    """Stage II of all operators."""
    return sum(stages.stage2 for stages in self.operators.values())


def count(
  model: str | classifier.Classifier, image_size: int | tuple[int, int] = 224
) -> Cost:
  """Counts a model on one image; nothing is compiled or computed.

  Args:
    model: Registered name, or a classifier of `create_model`, whose
      implementations are replaced by those of the official code.
    image_size: Pixels of a side, or (height, width).

  Raises:
    KeyError: No model has that name.
    ValueError: The image is too small for the model.
  """
  name = model if isinstance(model, str) else type(model.backbone).__name__
  if isinstance(model, str):
    model = models.create_model(model)
  fields = {field.name for field in dataclasses.fields(model.backbone)}
  official = {k: v for k, v in _IMPLEMENTATIONS.items() if k in fields}
  model = model.clone(backbone=model.backbone.clone(**official))
  size = (image_size,) * 2 if isinstance(image_size, int) else image_size
  images = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
  variables = jax.eval_shape(model.init, jax.random.key(0), images)

  products = _trace(model, variables, images)
  table1 = None
  if isinstance(model.backbone, _IN_TABLE1):
    in_table1 = _trace(model, variables, images, as_in_table1=True)
    by_operator = _by_operator(in_table1, as_in_table1=True)
    table1 = Stages(
      *(sum(macs) for macs in zip(*by_operator.values(), strict=True))
    )
  return Cost(
    model=name,
    image_size=size,
    params=sum(leaf.size for leaf in jax.tree.leaves(variables['params'])),
    macs=sum(product.macs for product in products),
    operators=_by_operator(products),
    table1=table1,
  )


class _Stage(enum.StrEnum):
  """What a method of an operator computes.

  A convolution without attention is both stages in one.
  """

  PROJECTION = 'stage1'
  AGGREGATION = 'stage2'
  CONVOLUTION = 'convolution'


def _stage(module: nn.Module, method: str) -> tuple[_Stage, nn.Module] | None:
  """The stage that a method is, and the operator of which it is one."""
  match module, method:
    case attention.Attention(), 'project' | 'aggregate':
      wrapped = isinstance(module.parent, acmix.Hybrid)
      stage = _Stage.PROJECTION if method == 'project' else _Stage.AGGREGATION
      return stage, module.parent if wrapped else module
    case acmix.Hybrid(), 'convolve':
      return _Stage.AGGREGATION, module
    case layers.Conv(name='operator'), '__call__':
      return _Stage.CONVOLUTION, module
  return None


class _Product(NamedTuple):
  """A product of the program.

  Attributes:
    scopes: Names of the scopes it is in, from outside in.
    macs: Multiply-adds.
    channels: Inputs of each output of a convolution; 1 otherwise.
  """

  scopes: tuple[str, ...]
  macs: int
  channels: int = 1


def _trace(model, variables, images, *, as_in_table1=False) -> list[_Product]:
  """The products of the model, those of operators in scopes of their own."""

  def mark(next_function, args, kwargs, context):
    found = _stage(context.module, context.method_name)
    if found is None:
      return next_function(*args, **kwargs)
    stage, operator = found
    if as_in_table1 and stage == _Stage.AGGREGATION:
      next_function = _before_strides(context.module, next_function)
    with jax.named_scope(f'{stage}{_OF}{".".join(operator.path)}'):
      return next_function(*args, **kwargs)

  with nn.intercept_methods(mark):
    jaxpr = jax.make_jaxpr(model.apply)(variables, images)
  return list(_products(jaxpr.jaxpr))


def _before_strides(module: nn.Module, aggregate: Callable) -> Callable:
  """Attention of all pixels; those between the strides are then dropped."""
  strided = isinstance(module, local_attention.LocalAttention)
  if not strided or module.strides == 1:
    return aggregate

  def aggregate_all(projections):
    dense = module.clone(strides=1, parent=None)
    out = dense.apply(module.variables, projections, method='aggregate')
    return out[:, :: module.strides, :: module.strides]

  return aggregate_all


def _products(
  jaxpr, outer: tuple[str, ...] = (), times: int = 1
) -> Iterator[_Product]:
  """The products of a program, those of loops as often as they run."""
  for equation in jaxpr.eqns:
    # Names within an inner program start afresh.
    scopes = (*outer, *str(equation.source_info.name_stack).split('/'))
    primitive, params = equation.primitive.name, equation.params
    results = times * math.prod(equation.outvars[0].aval.shape)
    if primitive == 'dot_general':
      shape = equation.invars[0].aval.shape
      (contracted, _), _ = params['dimension_numbers']
      terms = math.prod(shape[axis] for axis in contracted)
      if contracted:  # Otherwise nothing is added up: it repeats an array.
        yield _Product(scopes, results * terms)
    elif primitive == 'conv_general_dilated' and cost_marks.COPY not in scopes:
      shape = equation.invars[1].aval.shape
      outputs, channels, *_ = params['dimension_numbers'].rhs_spec
      terms = math.prod(shape) // shape[outputs]
      yield _Product(scopes, results * terms, shape[channels])
    elif primitive == 'mul' and cost_marks.MULTIPLY_ADD in scopes:
      yield _Product(scopes, results)
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
      found = list(_products(inner, scopes, times * length))
      unknown = primitive in ('cond', 'while') and not by_platform
      assert not found or not unknown, scopes
      yield from found


def _by_operator(
  products: list[_Product], *, as_in_table1: bool = False
) -> dict[str, Stages]:
  """Sums the products of each operator by stage."""
  operators = {}
  for product in products:
    marks = [scope for scope in product.scopes if _OF in scope]
    if not marks:
      continue
    stage, _, path = marks[0].partition(_OF)
    name = path.replace('.', '/')
    stage1, stage2 = operators.get(name, (0, 0))
    if stage == _Stage.AGGREGATION:
      stage2 += product.macs
    else:
      stage1 += product.macs
    if stage == _Stage.CONVOLUTION and as_in_table1:
      stage2 += product.macs // product.channels
    operators[name] = Stages(stage1, stage2)
  return operators


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
