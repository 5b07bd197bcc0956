"""Elements of the losses against their formulas, and their divisors."""

import jax.numpy as jnp
import numpy as np
import pytest

from acmix_jax.models.detection import losses


def test_focal_loss_is_its_formula():
  rng = np.random.default_rng(0)
  logits = rng.normal(0, 3, (6, 4))
  labels = np.array([0, 1, 2, 3, 4, 4])
  hot = np.eye(5)[labels, :4]
  p = 1 / (1 + np.exp(-logits))
  p_true = np.where(hot, p, 1 - p)
  alpha = np.where(hot, 0.25, 0.75)
  want = -(alpha * (1 - p_true) ** 2 * np.log(p_true)).sum(axis=-1)
  got = losses.focal(jnp.asarray(logits, jnp.float32), jnp.asarray(labels))
  np.testing.assert_allclose(got, want, rtol=2e-6)


def test_focal_loss_is_finite_and_exact_at_the_ends():
  logits = jnp.array([[-200.0], [200.0]])
  right = losses.focal(logits, jnp.array([1, 0]))
  wrong = losses.focal(logits, jnp.array([0, 1]))
  np.testing.assert_array_equal(right, 0)
  np.testing.assert_allclose(wrong, [0.25 * 200, 0.75 * 200])


@pytest.mark.parametrize(
  ('beta', 'want'), [(0.0, 2.75), (0.5, 0.25**2 + 0.5 - 0.25 + 2 - 0.25)]
)
def test_smooth_l1_is_a_square_then_a_line(beta, want):
  x = jnp.array([[0.25, -0.5, 2.0, 0.0]])
  np.testing.assert_allclose(losses.smooth_l1(x, beta), [want])


def test_groups_are_divided_by_their_own_counts():
  sums, counts = jnp.array([1.0, 2, 3, 4]), jnp.array([1, 3, 1, 3])
  for size, want in [
    (0, 10 / 8),
    (4, 10 / 8),
    (2, (3 / 4 + 7 / 4) / 2),
    (1, (1 + 2 / 3 + 3 + 4 / 3) / 4),
  ]:
    got = losses.group_mean(sums, counts, size)
    np.testing.assert_allclose(got, want, rtol=1e-6)
  by_level = losses.group_mean(jnp.stack([sums, 2 * sums], axis=1), counts, 2)
  np.testing.assert_allclose(by_level, [1.25, 2.5], rtol=1e-6)


def test_a_group_without_any_adds_nothing():
  zero = jnp.zeros(4)
  np.testing.assert_array_equal(losses.group_mean(zero, zero, 2), 0)


def test_groups_that_do_not_divide_the_batch_are_an_error():
  with pytest.raises(ValueError, match='batch of 3 .* images_per_group=2'):
    losses.group_mean(jnp.ones(3), jnp.ones(3), 2)


def test_total_is_the_sum_of_all_losses_over_levels():
  named = {'loss_cls': jnp.array([1.0, 2]), 's0.loss_mask': jnp.array(3.0)}
  assert losses.total({**named, 's0.acc': jnp.array(50.0)}) == 6
