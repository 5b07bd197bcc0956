"""The variables of a backbone and of the operators of its blocks."""

import re
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from acmix_jax.models.backbones import backbone as backbone_lib
from acmix_jax.weights import assignment, names

_PART = 'backbone'
# Any image that the windows of all families fit.
_IMAGES = (1, 224, 224, 3)
# A variable of the operator of a block.
_OF_OPERATOR = re.compile(r'(\w+)/(.+/operator)/(.+)')


def take(variables: Mapping[str, Any]) -> dict[str, Any]:
  """The variables of the backbone, {'params': {'backbone': ...}, ...}.

  Raises:
    ValueError: there is no backbone.
  """
  if _PART not in variables.get('params', {}):
    found = ', '.join(names.flatten(dict(variables))) or 'none'
    raise ValueError(
      "These are no variables of a model, {'params': {'backbone': ...}, ...}; "
      f'their names: {found:.200}.'
    )
  return {
    collection: {_PART: parts[_PART]}
    for collection, parts in variables.items()
    if _PART in parts
  }


def put(
  variables: Mapping[str, Any], backbone: Mapping[str, Any]
) -> dict[str, Any]:
  """The variables with those of another backbone, as `take` gives them."""
  others = {
    collection: {name: x for name, x in parts.items() if name != _PART}
    for collection, parts in variables.items()
  }
  merged = {
    collection: {**backbone.get(collection, {}), **others.get(collection, {})}
    for collection in {**others, **backbone}
  }
  return {collection: parts for collection, parts in merged.items() if parts}


def by_operator(
  variables: Mapping[str, Any],
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
  """Splits variables into those of each operator and the others.

  Returns:
    {'backbone/stage1_0/operator': {'params/alpha': ...}, ...}, and the others
    by their names.
  """
  operators, others = {}, {}
  for name, x in names.flatten(variables).items():
    match = _OF_OPERATOR.fullmatch(name)
    if match:
      collection, operator, variable = match.groups()
      operators.setdefault(operator, {})[f'{collection}/{variable}'] = x
    else:
      others[name] = x
  return operators, others


def name_of(operator: str, variable: str) -> str:
  """Name in the model of a variable of an operator, as `by_operator` has it."""
  collection, _, path = variable.partition('/')
  return f'{collection}/{operator}/{path}'


def join(
  operators: Mapping[str, Mapping[str, Any]], others: Mapping[str, Any]
) -> dict[str, Any]:
  """Inverts `by_operator`."""
  flat = {
    name_of(operator, variable): x
    for operator, variables in operators.items()
    for variable, x in variables.items()
  }
  return names.unflatten({**flat, **others})


def shapes(model: backbone_lib.Backbone) -> dict[str, Any]:
  """Shapes and types of a backbone's variables, named as in a model."""
  return jax.eval_shape(lambda: _init(model, jax.random.key(0)))


def random_values(
  model: backbone_lib.Backbone, wanted: Collection[str], seed: int
) -> dict[str, jax.Array]:
  """Random values of the variables of a backbone with these names."""

  @jax.jit  # What the others would be is not computed.
  def values():
    flat = names.flatten(_init(model, jax.random.key(seed)))
    return {name: flat[name] for name in wanted}

  return values() if wanted else {}


def fitted(
  weights: Mapping[str, Any],
  wanted: Mapping[str, Any],
  others: Mapping[str, jax.Array] | None = None,
) -> dict[str, Any]:
  """Weights as numpy arrays of the shapes and types that a backbone has.

  Args:
    weights: variables of the backbone.
    wanted: result of `shapes`.
    others: values of variables that the weights lack, by name.

  Raises:
    ValueError: names or shapes disagree, see `assign`.
  """
  others = others or {}
  strict = {k: x for k, x in names.flatten(wanted).items() if k not in others}
  placed = assignment.assign(names.unflatten(strict), weights)
  return names.unflatten(jax.device_get({**names.flatten(placed), **others}))


def _init(model, key):
  variables = model.init(key, jnp.zeros(_IMAGES))
  return {collection: {_PART: x} for collection, x in variables.items()}
