"""Samples of candidates, drawn at random: a fixed number with a mask.

Source: mmdetection 2.28 RandomSampler.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int32

from acmix_jax.ops import matching


class Samples(NamedTuple):
  """Candidates that were drawn: positives, then negatives, then nothing.

  Attributes:
    index: Index of each candidate, ascending among positives and among
      negatives; 0 where there is none, safe to gather by.
    positive: Which are positives.
    valid: Which are candidates at all.
  """

  index: Int32[Array, '*b s']
  positive: Bool[Array, '*b s']
  valid: Bool[Array, '*b s']


def most_positives(number: int, fraction: float) -> int:
  """Positives that `sample` draws at most; they fill the first places."""
  return int(number * fraction)


def sample(
  matched: Int32[Array, '*b n'],
  priorities: Float[Array, '*b n'],
  number: int,
  fraction: float,
) -> Samples:
  """Draws positives, and fills up with negatives.

  At most `number * fraction` positives; as many negatives as are then left of
  `number`, or exist. Of either kind those of the smallest priority are drawn,
  of equals the first: with priorities
  `jax.random.uniform(key, matched.shape)` every choice is as likely.

  Args:
    matched: What each candidate is matched with, `matching.Matches.number`.
    priorities: Numbers, below infinity, by which to choose.
    number: Candidates to draw.
    fraction: Largest share of positives.

  Returns:
    min(number, n) places.
  """
  n = matched.shape[-1]
  number, most = min(number, n), min(most_positives(number, fraction), n)
  positive, count = _smallest(matched > matching.BACKGROUND, priorities, most)
  negative, _ = _smallest(
    matched == matching.BACKGROUND, priorities, number, number - count
  )
  # Negatives follow positives, and what was not drawn follows both.
  positive = jnp.where(positive < n, positive, 2 * n)
  order = jnp.concatenate([positive, negative + n], axis=-1)
  order = jnp.sort(order)[..., :number]
  valid = order < 2 * n
  index = jnp.where(valid, order % max(n, 1), 0)
  return Samples(index, order < n, valid)


def _smallest(eligible, priorities, most, limit=None):
  """Indices of at most `limit` smallest priorities; n in places left over."""
  n = eligible.shape[-1]
  scores = jnp.where(eligible, -priorities, -jnp.inf)
  scores, index = lax.top_k(scores, most)
  drawn = scores > -jnp.inf
  if limit is not None:
    places = jnp.arange(most).reshape((1,) * (drawn.ndim - 1) + (-1,))
    drawn &= places < limit[..., None]
  return jnp.where(drawn, index, n).astype(jnp.int32), jnp.sum(drawn, axis=-1)
