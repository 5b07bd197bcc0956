"""Weights put in the place of a model's variables, by name."""

import collections
import logging
import re
from collections.abc import Mapping, Set
from typing import Any

import jax

from acmix_jax.weights import interpolation, names

logger = logging.getLogger(__name__)


def assign(
  variables: Mapping[str, Any],
  weights: Mapping[str, Any],
  replaceable: str | None = None,
) -> dict[str, Any]:
  """Puts weights in the place of variables, on the same devices.

    variables = model.init(key, images)     # with a head of another size
    weights = acmix_jax.load_weights(path)
    variables = assign(variables, weights, replaceable='^params/head/')

  Args:
    variables: nested dicts of arrays, or of `jax.ShapeDtypeStruct` with
      shardings.
    weights: result of `load_weights`; cast to the types of the variables.
      Position tables of another size are interpolated, see `interpolation.fit`.
    replaceable: regular expression of names that `weights` may lack, hold in
      another shape or hold besides: such variables stay as they are. None:
      there are none.

  Raises:
    ValueError: names or shapes disagree; the message names ten of each kind. If
      fewer than half of the variables that are not replaceable fit, or none at
      all, it has the first names of both sides instead, and the prefix that
      would make them agree.
  """
  old, new = names.flatten(variables), names.flatten(weights)
  new = interpolation.fit(new, {name: x.shape for name, x in old.items()})
  fits = {
    name
    for name in old.keys() & new.keys()
    if old[name].shape == new[name].shape
  }
  _check_fit(old, new, fits, replaceable)
  notes = names.listing(
    {
      'not in the weights, start afresh': old.keys() - fits,
      'in the weights alone, left out': new.keys() - old.keys(),
    }
  )
  if notes:
    logger.info('Variables: %s', notes)
  return names.unflatten(
    {
      name: _placed(new[name], x) if name in fits else x
      for name, x in old.items()
    }
  )


def _check_fit(old, new, fits, replaceable):
  """Raises ValueError where what is not replaceable disagrees."""

  def strict(found):
    return {
      name
      for name in found
      if replaceable is None or not re.search(replaceable, name)
    }

  needed = strict(old)
  if 2 * len(needed & fits) < len(needed) or not fits:
    raise ValueError(_hardly_any(old, new, fits, needed))
  disagreements = names.listing(
    {
      'missing': strict(old.keys() - new.keys()),
      'unknown': strict(new.keys() - old.keys()),
      'of another shape': [
        f'{name} {new[name].shape}, the model has {old[name].shape}'
        for name in strict(old.keys() & new.keys()) - fits
      ],
    }
  )
  if disagreements:
    raise ValueError(f'The weights do not fit the model.\n{disagreements}')


def _placed(value, like):
  """The value in the type and on the devices of an array or its shape."""
  return jax.device_put(
    value.astype(like.dtype), getattr(like, 'sharding', None)
  )


def _hardly_any(old, new, fits, needed):
  def first(side):
    rest = sorted(side.keys() - fits)[:5]
    return ', '.join(f'{name} {side[name].shape}' for name in rest) or 'none'

  message = (
    f'Hardly any weights fit the model: {len(needed & fits)} of the '
    f'{len(needed)} variables that they must have. The first of the rest in '
    f'the model: {first(old)}; in the weights: {first(new)}.'
  )
  for longer, shorter, change in (
    (old.keys(), new.keys(), 'with'),
    (new.keys(), old.keys(), 'without'),
  ):
    prefix, count = _common_prefix(longer, shorter)
    if 2 * count > min(len(old), len(new)):
      message += (
        f" {count} names of the weights would be the model's {change} "
        f'{prefix}/ after the collection (params/{prefix}/...).'
      )
  return message


def _common_prefix(longer: Set[str], shorter: Set[str]) -> tuple[str, int]:
  """Finds what to take from behind the collection of most names.

  Returns:
    The prefix, and how many names of `longer` are in `shorter` without it.
  """
  counts = collections.Counter()
  for name in longer:
    collection, *path = name.split('/')
    for depth in range(1, len(path)):
      if '/'.join([collection, *path[depth:]]) in shorter:
        counts['/'.join(path[:depth])] += 1
  return max(counts.items(), key=lambda item: item[1], default=('', 0))
