"""Networks without ACmix as ACmix networks of the same function."""

import logging
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from acmix_jax import lookup, models
from acmix_jax.weights import backbones, names, nearest

logger = logging.getLogger(__name__)

# How well the ACmix network must compute what the other one does.
FITS = ('exact', 'nearest')
_NO_EQUAL = (
  'A convolution of 3x3 pixels has up to three times the rank of an ACmix '
  "layer's, so there is none of the same function. 'nearest' in place of "
  "'exact' takes the nearest, to be trained further"
)


def acmixify(
  name: str,
  variables: Mapping[str, Any],
  *,
  fit: str = 'exact',
  new_weight: float = 0.0,
  seed: int = 0,
  backbone: str | None = None,
  **overrides: Any,
) -> dict[str, Any]:
  """Variables of the ACmix network that computes what a trained one does.

    variables = acmix_jax.load_weights(path)           # of swin_tiny
    variables = acmix_jax.acmixify('swin_tiny', variables)
    model = acmix_jax.create_model('swin_tiny_acmix')  # the same logits

    acmix_jax.acmixify('upernet', variables, backbone='swin_tiny')

  An attention becomes the attention path, with alpha = 1. What the convolution
  path needs beside the projections starts as it does at random: shifts, and
  the paper's fully connected layer. Its weight beta is `new_weight`.

  The 3x3 convolutions of resnet26, resnet38 and resnet50 have no ACmix layer
  of the same function, see `nearest.nearest_path`. With fit='nearest' each
  becomes the nearest convolution path, with beta = 1, and the log says how near
  that is; alpha is `new_weight`, and the attention's position term is random.

  Args:
    name: the network without ACmix: one of `acmix_jax.list_models()`, or a head
      with its `backbone`.
    variables: its variables, {'params': {'backbone', ...}, ...} of arrays; the
      parts beside the backbone are passed on as they are.
    fit: 'exact', or 'nearest', which also takes convolutions.
    new_weight: weight of the path that the network does not have.
    seed: of what starts at random.
    backbone: backbone of a head, without ACmix.
    **overrides: the fields the network is made with, if not the defaults.

  Returns:
    Variables of the model `models.with_acmix(name)`, or of the head on such a
    backbone; those of the backbone are numpy arrays.

  Raises:
    KeyError: no model has that name.
    ValueError: the network has ACmix already, or convolutions that need
      fit='nearest'; the variables are not its own: the message has names and
      both shapes; a field or an argument cannot work.
  """
  check_acmix_options(fit, new_weight)
  if name in models.list_heads():
    backbone = backbone and models.with_acmix(backbone)
  else:
    name = models.with_acmix(name)
  model = models.create_model(name, backbone=backbone, **overrides).backbone
  wanted = backbones.shapes(model)
  converted, fresh = acmixed(
    backbones.take(variables), wanted, fit=fit, new_weight=new_weight
  )
  random = backbones.random_values(model, fresh, seed)
  return backbones.put(variables, backbones.fitted(converted, wanted, random))


class Acmixed(NamedTuple):
  """Weights named as the variables of an ACmix network.

  Attributes:
    weights: nested dicts of arrays.
    fresh: names of variables that they lack, which start as they do at random.
  """

  weights: dict[str, Any]
  fresh: frozenset[str]


def check_acmix_options(fit: str, new_weight: float) -> None:
  """Raises ValueError for options of `acmixify` that cannot work."""
  if fit not in FITS:
    raise ValueError(lookup.unknown('Fit', fit, FITS))
  if not math.isfinite(new_weight):
    raise ValueError(
      f'The weight {new_weight} of the new path is no finite number; 0 keeps '
      'the function, a small one such as 0.01 nearly so.'
    )


def acmixed(
  weights: Mapping[str, Any],
  like: Mapping[str, Any],
  *,
  fit: str = 'exact',
  new_weight: float = 0.0,
) -> Acmixed:
  """Weights of a network without ACmix for one that has it; see `acmixify`.

  Layers that have ACmix already stay as they are. Whether the weights fit is
  for `assign` to say, but for convolutions.

  Args:
    weights: variables of the network without ACmix, or with less of it.
    like: variables of the ACmix network, or their shapes.
    fit: see `acmixify`.
    new_weight: see `acmixify`.

  Raises:
    ValueError: no layer has ACmix in the one network alone; or there are
      convolutions that the fit does not allow, or of other shapes.
  """
  check_acmix_options(fit, new_weight)
  operators, others = backbones.by_operator(weights)
  wanted, _ = backbones.by_operator(like)
  layers = _layers_to_change(operators, wanted, fit)
  fresh, errors = set(), {}
  for name, shapes in layers.items():
    old = operators.get(name, {})
    kernel = old.get('params/kernel')
    own, new = ('alpha', 'beta') if kernel is None else ('beta', 'alpha')
    if kernel is None:
      layer = {
        variable.replace('/', '/attention/', 1): x
        for variable, x in old.items()
      }
      lacking = {x for x in shapes if '/attention/' not in x}
    else:
      layer, errors[name] = _of_convolution(name, np.asarray(kernel), shapes)
      lacking = {*shapes}
    layer[f'params/{own}'] = np.float32(1)
    layer[f'params/{new}'] = np.float32(new_weight)
    operators[name] = layer
    fresh |= {backbones.name_of(name, x) for x in lacking - layer.keys()}
  if errors:
    logger.warning(
      'The convolutions became the nearest that ACmix layers have. Relative '
      'errors of their kernels: %s.',
      ', '.join(f'{name} {error:.2f}' for name, error in errors.items()),
    )
  return Acmixed(backbones.join(operators, others), frozenset(fresh))


def _layers_to_change(operators, wanted, fit):
  """The shapes of the ACmix layers that the weights have without ACmix."""
  layers = {name: x for name, x in wanted.items() if 'params/alpha' in x}
  if not layers:
    raise ValueError(
      'The model has no ACmix layer that weights of a network without ACmix '
      "could become; the models that have: acmix_jax.list_models('*_acmix')."
    )
  mixed = {name for name, x in operators.items() if 'params/alpha' in x}
  if layers.keys() <= mixed:
    raise ValueError(
      'The weights are of a network that has ACmix already; start from them as '
      'they are.\n' + names.listing({'ACmix layers': mixed})
    )
  layers = {name: x for name, x in layers.items() if name not in mixed}
  convolutions = {
    name for name in layers if 'params/kernel' in operators.get(name, {})
  }
  if fit == 'exact' and convolutions:
    raise ValueError(
      'No ACmix layer computes the same as a convolution of 3x3 pixels: it has '
      "a third of its rank at most. 'nearest' in place of 'exact' takes the "
      'nearest one, to be trained further.\n'
      + names.listing({'convolutions': convolutions})
    )
  return layers


def _of_convolution(name, kernel, shapes):
  """The variables of an ACmix layer near a convolution, and their error."""
  query = shapes['params/attention/query/kernel'].shape
  if kernel.shape[2:] != query:
    raise ValueError(
      f'The weights do not fit the model: params/{name}/kernel {kernel.shape} '
      f'would need projections {kernel.shape[2:]}, the model has {query}.'
    )
  maps, _ = shapes['params/fc_kernel'].shape
  size, *_ = shapes['params/depthwise_kernel'].shape
  path = nearest.nearest_path(kernel, maps // 3, size)
  layer = {
    'params/fc_kernel': path.fc_kernel,
    'params/depthwise_kernel': path.depthwise_kernel,
  }
  for part, projection in zip(
    ('query', 'key', 'value'), path.projections, strict=True
  ):
    layer[f'params/attention/{part}/kernel'] = projection
    layer[f'params/attention/{part}/bias'] = np.zeros(query[1:])
  return layer, path.error
