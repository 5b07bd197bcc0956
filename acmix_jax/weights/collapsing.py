"""ACmix layers with one path in place of two."""

import fnmatch
from collections.abc import Mapping
from typing import Any, NamedTuple

from acmix_jax import lookup, models
from acmix_jax.weights import backbones

# Paths of a layer, as operators, and their weights.
_WEIGHTS = {'attention': 'params/alpha', 'shift_convolution': 'params/beta'}


class Collapsed(NamedTuple):
  """A network of which some ACmix layers have one path.

  Attributes:
    variables: its variables; those of the backbone are numpy arrays.
    kept: the path that is left of layers, 'attention' or 'shift_convolution',
      by block.
    block_operators: the field of the backbone that makes it, with `kept`.
  """

  variables: dict[str, Any]
  kept: dict[str, str]
  block_operators: tuple[tuple[str, str], ...]


def collapse(
  name: str,
  variables: Mapping[str, Any],
  *,
  threshold: float | None = None,
  layers: Mapping[str, str] | None = None,
  block_operators: tuple[tuple[str, str], ...] = (),
  **overrides: Any,
) -> Collapsed:
  """Drops a path of ACmix layers, which then compute less.

    less = acmix_jax.collapse('swin_tiny_acmix', variables, threshold=0.05)
    model = acmix_jax.create_model(
      'swin_tiny_acmix', block_operators=less.block_operators
    )
    logits = model.apply(less.variables, images)

  The weight of the path that is kept passes into its last linear map: alpha
  into the output projection of the attention, or into the values where there is
  none; beta into the depthwise kernel. A layer that keeps the attention is then
  that of the network without ACmix; one that keeps the convolution projects as
  before, and has nothing else of the attention. Where the weight of the dropped
  path is 0 the network computes what it did.

  Args:
    name: network with ACmix: one of `acmix_jax.list_models()`, or a head with
      its `backbone` among the overrides.
    variables: its variables, {'params': {'backbone', ...}, ...} of arrays.
    threshold: a path is dropped whose share |weight| / (|alpha| + |beta|) is
      below this, in (0, 0.5]. Shares do not tell how much a path matters:
      evaluate what comes of it.
    layers: instead of the threshold, which path to keep, 'attention' or
      'shift_convolution', by shell-style pattern of the blocks' names, such as
      {'stage1_*': 'attention'}; the first pattern that matches counts.
    block_operators: those that the network has already.
    **overrides: the fields that it is made with, if not the defaults.

  Raises:
    KeyError: no model has that name.
    ValueError: not one of `threshold` and `layers` is given, or it cannot work;
      the network has no ACmix layer; the variables are not its own.
  """
  model = models.create_model(
    name, block_operators=block_operators, **overrides
  ).backbone
  given = backbones.fitted(backbones.take(variables), backbones.shapes(model))
  operators, others = backbones.by_operator(given)
  kept = _kept(operators, threshold, layers)
  block_operators = (*kept.items(), *block_operators)
  shapes = backbones.shapes(model.clone(block_operators=block_operators))
  wanted, _ = backbones.by_operator(shapes)
  for operator, layer in operators.items():
    if path := kept.get(_block(operator)):
      layer = _alone(layer, path)
      operators[operator] = {x: layer[x] for x in wanted[operator]}
  collapsed = backbones.fitted(backbones.join(operators, others), shapes)
  return Collapsed(backbones.put(variables, collapsed), kept, block_operators)


def _block(operator):
  """Name of the block of 'backbone/stage1_0/operator'."""
  return operator.split('/')[-2]


def _kept(operators, threshold, layers):
  """The path that each block keeps which loses one."""
  if (threshold is None) == (layers is None):
    raise ValueError('Give a threshold, or the layers.')
  weights = {
    _block(operator): [abs(float(x[name])) for name in _WEIGHTS.values()]
    for operator, x in operators.items()
    if _WEIGHTS['attention'] in x
  }
  if not weights:
    raise ValueError('The network has no ACmix layer to drop a path of.')
  if layers is None:
    return _of_shares(threshold, weights)
  return _of_patterns(layers, weights)


def _of_patterns(layers, blocks):
  """The path that each block keeps, as `layers` says."""
  kept = {}
  for pattern, path in layers.items():
    if path not in _WEIGHTS:
      raise ValueError(lookup.unknown('Path', path, _WEIGHTS))
    matches = fnmatch.filter(blocks, pattern)
    if not matches:
      raise ValueError(
        f'{pattern!r} matches no ACmix layer; there are {", ".join(blocks)}.'
      )
    kept = {**dict.fromkeys(matches, path), **kept}
  return kept


def _of_shares(threshold, weights):
  """The path that each block keeps where the other's share is too small."""
  if not 0 < threshold <= 0.5:
    raise ValueError(
      f'threshold={threshold}; the smaller of two shares is at most 0.5: above '
      '0 and up to that is allowed, such as 0.05.'
    )
  kept = {}
  for block, (alpha, beta) in weights.items():
    if min(alpha, beta) < threshold * (alpha + beta):
      kept[block] = 'attention' if alpha > beta else 'shift_convolution'
  return kept


def _alone(layer, path):
  """The variables of an ACmix layer as those of a path alone, and others."""
  if path == 'attention':
    layer = layer | {
      name.replace('/attention/', '/', 1): x for name, x in layer.items()
    }
    part = 'out' if 'params/out/kernel' in layer else 'value'
    last = [f'params/{part}/kernel', f'params/{part}/bias']
  else:
    last = ['params/depthwise_kernel']
  weight = layer[_WEIGHTS[path]]
  return layer | {name: layer[name] * weight for name in last}
