"""Losses of detectors, and what they are divided by."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int, Num

# Summand of every divisor in the sources: the machine epsilon of float32.
_EPSILON = float(np.finfo(np.float32).eps)


def group_mean(
  sums: Float[Array, 'b ...'],
  counts: Num[Array, ' b'],
  images_per_group: int,
) -> Float32[Array, '...']:
  """Mean over groups of (sum of the group / count of the group).

  mmdetection divides the sums of a GPU's images, usually two, by the counts of
  that GPU, and then averages over GPUs: with many images that is not the sum
  over all divided by the count of all, which one group gives.

  Args:
    sums: Sums of each image.
    counts: Counts of each image; a group without any adds 0.
    images_per_group: Neighbours in the batch that are divided by one count; 0:
      the whole batch.

  Raises:
    ValueError: The groups do not divide the batch.
  """
  batch = len(sums)
  size = images_per_group or batch
  if batch % size:
    raise ValueError(
      f'A batch of {batch} does not divide into groups of images_per_group='
      f'{images_per_group}; give a multiple of it, or images_per_group=0 for '
      'one group.'
    )
  by_group = sums.astype(jnp.float32).reshape(-1, size, *sums.shape[1:])
  counts = counts.astype(jnp.float32).reshape(-1, size).sum(axis=1)
  divisors = counts + _EPSILON
  divisors = divisors.reshape(-1, *[1] * (sums.ndim - 1))
  return (by_group.sum(axis=1) / divisors).mean(axis=0)


def focal(
  logits: Float[Array, '*b k'],
  labels: Int[Array, '*b'],
  alpha: float = 0.25,
) -> Float32[Array, '*b']:
  """-alpha_t (1 - p_t)^2 log p_t, summed over the classes.

  p_t is the probability of what is true of a class: the sigmoid of the logit
  for the label, 1 - that for the other classes; alpha_t is alpha or 1 - alpha.
  Source: Lin et al., "Focal Loss for Dense Object Detection", section 3. Both
  factors come from one logit, without the rounding of 1 - p_t.

  Args:
    logits: Logits of k classes.
    labels: Class; k: none of them.
    alpha: Weight of the label; the other classes have 1 - alpha.
  """
  logits = logits.astype(jnp.float32)
  hot = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
  against = jnp.where(hot, -logits, logits)
  weights = jnp.where(hot, alpha, 1 - alpha)
  losses = jnp.square(jax.nn.sigmoid(against)) * jax.nn.softplus(against)
  return (weights * losses).sum(axis=-1)


def smooth_l1(x: Float[Array, '*b 4'], beta: float) -> Float32[Array, '*b']:
  """x^2 / (2 beta) for |x| < beta, |x| - beta / 2 beyond, summed over x.

  Args:
    x: Differences of deltas or coordinates.
    beta: Where the square ends; 0: |x|.
  """
  x = jnp.abs(x.astype(jnp.float32))
  if beta:
    x = jnp.where(x < beta, jnp.square(x) / (2 * beta), x - beta / 2)
  return x.sum(axis=-1)


def total(losses: dict[str, Float[Array, '*levels']]) -> Float32[Array, '']:
  """Sum of the entries whose name has 'loss' in it, over levels too."""
  return sum(x.sum() for name, x in losses.items() if 'loss' in name)
