"""Counts the products of a model's own program, without computing it.

A MAC is one multiply-add of a convolution, a matrix product or a weighted sum;
biases, normalisation, activations, softmax and the resizing of maps are free.
"""

import dataclasses
import enum
import functools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.extend
import jax.numpy as jnp
from flax import linen as nn

from acmix_jax import models
from acmix_jax.models import classifier, detection, segmenters
from acmix_jax.models.backbones import resnet, san, swin
from acmix_jax.nn import acmix, attention, layers, local_attention
from acmix_jax.ops import cost_marks

_IN_TABLE1 = (resnet.ResNet, san.SAN, swin.Swin)
# Those with the products of the official code.
_IMPLEMENTATIONS = {
  'attention_implementation': 'patches',
  'convolution_implementation': 'shifts',
}
# Between the stage and the path of an operator in the name of a scope.
_OF = ' of '
# Before the name of a part of the model in the name of a scope.
_PART = 'part '
# The part that only training computes.
_FOR_TRAINING = 'auxiliary'


class Stages(NamedTuple):
  """MACs of the two stages."""

  stage1: int
  stage2: int


class Part(NamedTuple):
  """Parameters and MACs of a part of a model."""

  params: int
  macs: int


@dataclasses.dataclass(frozen=True)
class Cost:
  """What one image costs.

  Attributes:
    model: Name, or class of the backbone.
    image_size: (height, width).
    parts: Parameters and multiply-adds by part: 'backbone', 'neck', 'head', and
      'auxiliary', the head that is for training alone. Of Mask R-CNN 'rpn', and
      each stage's 'box_heads_0' on 1000 regions and 'mask_heads_0' on 100.
    operators: Multiply-adds of each block's operator, by its path.
    table1: Multiply-adds of all operators, counted as in the paper's Table 1;
      None where the paper does not say how, and of dense prediction.
  """

  model: str
  image_size: tuple[int, int]
  parts: dict[str, Part]
  operators: dict[str, Stages]
  table1: Stages | None

  @property
  def params(self) -> int:
    """Parameters of all parts."""
    return sum(part.params for part in self.parts.values())

  @property
  def macs(self) -> int:
    """Multiply-adds of a prediction."""
    return sum(
      part.macs for name, part in self.parts.items() if name != _FOR_TRAINING
    )

  @property
  def stage1_macs(self) -> int:
    """Stage I of all operators."""
    return sum(stages.stage1 for stages in self.operators.values())

  @property
  def stage2_macs(self) -> int:
    """Stage II of all operators."""
    return sum(stages.stage2 for stages in self.operators.values())


def count(
  model: str
  | classifier.Classifier
  | segmenters.Segmenter
  | detection.Detector,
  image_size: int | tuple[int, int] = 224,
) -> Cost:
  """Counts a model on one image; nothing is compiled or computed.

  Args:
    model: Registered name, HEAD:BACKBONE, or a model of `create_model`, whose
      implementations are replaced by those of the official code.
    image_size: Pixels of a side, or (height, width).

  Raises:
    KeyError: No model has that name.
    ValueError: The image is too small for the model.
  """
  name = model if isinstance(model, str) else type(model.backbone).__name__
  if isinstance(model, str):
    model = models.create_model(**models.split_name(model))
  fields = {field.name for field in dataclasses.fields(model.backbone)}
  official = {k: v for k, v in _IMPLEMENTATIONS.items() if k in fields}
  model = model.clone(backbone=model.backbone.clone(**official))
  size = (image_size,) * 2 if isinstance(image_size, int) else image_size
  images = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
  init = functools.partial(model.init, method=_method(model), train=False)
  variables = jax.eval_shape(init, jax.random.key(0), images)

  params = variables['params']
  products = _trace(model, variables, images)
  table1 = None
  is_classifier = isinstance(model, classifier.Classifier)
  if is_classifier and isinstance(model.backbone, _IN_TABLE1):
    in_table1 = _trace(model, variables, images, as_in_table1=True)
    by_operator = _by_operator(in_table1, as_in_table1=True)
    table1 = Stages(
      *(sum(macs) for macs in zip(*by_operator.values(), strict=True))
    )
  return Cost(
    model=name,
    image_size=size,
    parts={
      name: Part(
        sum(leaf.size for leaf in jax.tree.leaves(params[name])),
        sum(x.macs for x in products if f'{_PART}{name}' in x.scopes),
      )
      for name in _in_order(model, params)
    },
    operators=_by_operator(products),
    table1=table1,
  )


def _in_order(model: nn.Module, params: dict) -> list[str]:
  """The parts of a model: its fields, then those that it makes itself."""
  fields = [field.name for field in dataclasses.fields(model)]
  return [x for x in fields if x in params] + [
    x for x in params if x not in fields
  ]


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
      wrapped = isinstance(module.parent, acmix.ConvolutionPath)
      stage = _Stage.PROJECTION if method == 'project' else _Stage.AGGREGATION
      return stage, module.parent if wrapped else module
    case acmix.ConvolutionPath(), 'convolve':
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
  """The products of the model; parts and operators have scopes of their own."""

  def mark(next_function, args, kwargs, context):
    found = _stage(context.module, context.method_name)
    if len(context.module.path) == 1:
      with jax.named_scope(f'{_PART}{context.module.name}'):
        return next_function(*args, **kwargs)
    if found is None:
      return next_function(*args, **kwargs)
    stage, operator = found
    if as_in_table1 and stage == _Stage.AGGREGATION:
      next_function = _before_strides(context.module, next_function)
    with jax.named_scope(f'{stage}{_OF}{".".join(operator.path)}'):
      return next_function(*args, **kwargs)

  with nn.intercept_methods(mark):
    jaxpr = jax.make_jaxpr(
      lambda *args: model.apply(*args, method=_method(model), train=False)
    )(variables, images)
  return list(_products(jaxpr.jaxpr))


def _method(model: nn.Module) -> str:
  """The method that runs all that has parameters."""
  match model:
    case classifier.Classifier():
      return '__call__'
    case detection.Detector():
      return 'networks'
  return 'training_logits'


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
    results = int(results * cost_marks.factor(scopes))
    if primitive == 'dot_general':
      shape = equation.invars[0].aval.shape
      (contracted, _), _ = params['dimension_numbers']
      terms = math.prod(shape[axis] for axis in contracted)
      # Where nothing is contracted it repeats an array.
      if contracted and cost_marks.RESIZE not in scopes:
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
