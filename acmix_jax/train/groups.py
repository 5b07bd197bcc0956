"""Groups of parameters that are trained by other rules than the rest.

A parameter is known by its path, its names joined by '/', e.g.
'stage1_0/conv1/kernel'.
"""

import dataclasses
import math
import re
from collections.abc import Iterable
from typing import Any

import jax
import ml_collections


@dataclasses.dataclass(frozen=True)
class Rule:
  """How a parameter is trained.

  Attributes:
    learning_rate: Factor of the learning rate.
    weight_decay: Factor of the weight decay.
    frozen: Whether the parameter never changes.
  """

  learning_rate: float = 1.0
  weight_decay: float = 1.0
  frozen: bool = False


def parameter_path(path: tuple) -> str:
  """Key path of a leaf as a string, e.g. 'stage1_0/conv1/kernel'."""
  return jax.tree_util.keystr(path, simple=True, separator='/')


def parameter_rules(
  params: Any, groups: ml_collections.ConfigDict, frozen: str = ''
) -> dict[str, Rule]:
  """Rule of every parameter, by its path.

  Args:
    params: parameter tree, of arrays or their shapes.
    groups: `optim.groups` of a config: `Rule`s by name, each with a `pattern`,
      a regular expression that matches the paths of its parameters anywhere;
      '' matches none. A parameter of several groups has the product of their
      factors, and is frozen if one of them is.
    frozen: pattern of further frozen parameters, see `tasks.Task`.

  Raises:
    ValueError: a pattern is no regular expression or matches no parameter, or
      a factor is negative or not finite.
  """
  paths = [
    parameter_path(path)
    for path, _ in jax.tree_util.tree_leaves_with_path(params)
  ]
  rules = dict.fromkeys(paths, Rule())
  for name, group in groups.items():
    field = f'optim.groups.{name}'
    for factor in ('learning_rate', 'weight_decay'):
      if not 0 <= group[factor] < math.inf:
        raise ValueError(
          f'{field}.{factor}={group[factor]} must be finite and at least 0.'
        )
    for path in _matching(paths, group.pattern, f'{field}.pattern'):
      rules[path] = Rule(
        rules[path].learning_rate * group.learning_rate,
        rules[path].weight_decay * group.weight_decay,
        rules[path].frozen or group.frozen,
      )
  for path in _matching(paths, frozen, 'task.frozen'):
    rules[path] = dataclasses.replace(rules[path], frozen=True)
  if all(rule.frozen for rule in rules.values()):
    raise ValueError('All parameters are frozen: there is nothing to train.')
  return rules


def _matching(paths: Iterable[str], pattern: str, field: str) -> list[str]:
  """Paths that a pattern matches; none for ''."""
  if not pattern:
    return []
  try:
    expression = re.compile(pattern)
  except re.error as error:
    raise ValueError(
      f'{field}={pattern!r} is no regular expression: {error}.'
    ) from error
  matching = [path for path in paths if expression.search(path)]
  if not matching:
    raise ValueError(
      f'{field}={pattern!r} matches no parameter; paths read like '
      f'{", ".join(repr(path) for path in sorted(paths)[:3])}.'
    )
  return matching


def trained(params: Any, rules: dict[str, Rule]) -> Any:
  """The tree with None in the place of frozen parameters.

  jax sees None as no leaf: what is made of the result, as gradients and the
  state of an optimiser, has nothing for frozen parameters.
  """
  return jax.tree_util.tree_map_with_path(
    lambda path, x: None if rules[parameter_path(path)].frozen else x, params
  )


def with_frozen(trained_params: Any, params: Any) -> Any:
  """Puts the frozen ones of `params` into a tree that `trained` made."""
  return jax.tree.map(
    lambda new, old: old if new is None else new,
    trained_params,
    params,
    is_leaf=lambda x: x is None,
  )
