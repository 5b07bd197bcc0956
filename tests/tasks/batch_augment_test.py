"""Mixup, CutMix and erasing of batches, recomputed in numpy."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from acmix_jax import models
from acmix_jax.tasks import batch_augment, classification
from configs import imagenet

KEYS = jax.random.split(jax.random.key(0), 1000)


def batch(count=8, size=12, classes=5):
  rng = np.random.default_rng(0)
  images = rng.normal(size=(count, size, size, 3)).astype(np.float32)
  targets = rng.dirichlet(np.ones(classes), count).astype(np.float32)
  return jnp.asarray(images), jnp.asarray(targets)


def weights(transform, count=1000, height=16, width=24):
  sample = jax.vmap(lambda key: transform.sample_weights(key, height, width))
  return np.array(jax.jit(sample)(KEYS[:count]))


def is_mixup(samples):
  """True where all pixels have the same weight, which is not 0 or 1."""
  first = samples[:, :1, :1]
  return (samples == first).all(axis=(1, 2)) & (first[:, 0, 0] % 1 != 0)


@pytest.mark.parametrize('alpha', [0.8, 0.2])
def test_mixup_weights_are_beta_distributed(alpha):
  samples = weights(batch_augment.MixupCutmix(alpha, 0.0))
  kept = samples[:, 0, 0]
  np.testing.assert_array_equal(samples, samples[:, :1, :1] + 0 * samples)
  # Beta(a, a): mean 1/2, variance 1 / (4 (2 a + 1)).
  np.testing.assert_allclose(kept.mean(), 0.5, atol=0.05)
  np.testing.assert_allclose(kept.var(), 0.25 / (2 * alpha + 1), atol=0.02)


def test_mixup_blends_with_the_reversed_batch():
  images, targets = batch()
  key = jax.random.key(3)
  mixed, mixed_targets = jax.jit(batch_augment.MixupCutmix(0.8, 0.0))(
    key, images, targets
  )
  x, y = np.array(images), np.array(targets)
  kept = np.median((mixed - x[::-1]) / (x - x[::-1]))
  assert 0.01 < kept < 0.99
  np.testing.assert_allclose(
    mixed, kept * x + (1 - kept) * x[::-1], rtol=0, atol=1e-5
  )
  np.testing.assert_allclose(
    mixed_targets, kept * y + (1 - kept) * y[::-1], rtol=0, atol=1e-5
  )


@pytest.mark.parametrize('seed', range(3))
def test_cutmix_replaces_a_box_and_weighs_targets_by_its_area(seed):
  images, targets = batch()
  key = jax.random.key(seed)
  mixed, mixed_targets = jax.jit(batch_augment.MixupCutmix(0.0, 1.0))(
    key, images, targets
  )
  x, y, mixed = np.array(images), np.array(targets), np.array(mixed)
  replaced = (mixed == x[::-1]).all(axis=(0, 3))
  np.testing.assert_array_equal(
    mixed, np.where(replaced[None, :, :, None], x[::-1], x)
  )
  rows, columns = replaced.any(axis=1), replaced.any(axis=0)
  np.testing.assert_array_equal(replaced, rows[:, None] & columns)
  for side in (rows, columns):
    assert np.diff(np.flatnonzero(side)).max(initial=1) == 1
  kept = 1 - replaced.mean()
  assert 0 < kept < 1
  np.testing.assert_allclose(
    mixed_targets, kept * y + (1 - kept) * y[::-1], atol=1e-6
  )


def test_cut_boxes_have_the_sizes_and_places_of_timm():
  height, width, area = 16, 24, 0.4
  boxes = jax.jit(
    jax.vmap(lambda key: batch_augment._sample_cut(key, area, height, width))
  )(KEYS)
  # int(16 sqrt(0.4)) // 2 = 5 and int(24 sqrt(0.4)) // 2 = 7, each way from a
  # centre that is uniform over the pixels.
  expected = {
    (max(y - 5, 0), max(x - 7, 0), min(y + 5, height), min(x + 7, width))
    for y in range(height)
    for x in range(width)
  }
  seen = [tuple(box) for box in np.array(boxes)[:, 0].tolist()]
  assert set(seen) <= expected
  # Centres 0 to 15 give uniform tops; those of 0 to 5 are clipped to 0.
  tops = np.bincount([box[0] for box in seen], minlength=11) / len(seen)
  np.testing.assert_allclose(tops[0], 6 / 16, atol=0.05)
  np.testing.assert_allclose(tops[1:], 1 / 16, atol=0.03)


def test_probabilities_of_cutmix_and_of_any_blend_are_kept():
  samples = weights(
    batch_augment.MixupCutmix(0.8, 1.0, 0.6, 0.25, group_size=1)
  )
  mixup = is_mixup(samples)
  untouched = (samples == 1).all(axis=(1, 2))
  np.testing.assert_allclose(mixup.mean(), 0.6 * 0.75, atol=0.05)
  # Of the boxes of CutMix a few are empty.
  assert 0.37 <= untouched.mean() < 0.47
  np.testing.assert_array_equal(np.unique(samples[~mixup]), [0, 1])


def test_each_group_has_its_own_draw_and_partners():
  images, targets = batch(count=8)
  key = jax.random.key(1)
  transform = jax.jit(batch_augment.MixupCutmix(0.8, 0.0, group_size=4))
  mixed, _ = transform(key, images, targets)
  x = np.array(images).reshape(2, 4, -1)
  ratios = (np.array(mixed).reshape(x.shape) - x[:, ::-1]) / (x - x[:, ::-1])
  kept = np.median(ratios, axis=(1, 2))
  assert abs(kept[0] - kept[1]) > 0.01
  np.testing.assert_allclose(
    np.array(mixed).reshape(x.shape),
    kept[:, None, None] * x + (1 - kept[:, None, None]) * x[:, ::-1],
    atol=1e-5,
  )


def test_batch_that_does_not_split_into_groups_is_one_group():
  images, targets = batch(count=6)
  key = jax.random.key(1)
  chex.assert_trees_all_equal(
    *(
      jax.jit(batch_augment.MixupCutmix(0.8, 1.0, group_size=group_size))(
        key, images, targets
      )
      for group_size in (4, 0)
    )
  )


def test_nothing_happens_without_mixup_or_erasing():
  images, targets = batch()
  key = jax.random.key(0)
  off = batch_augment.MixupCutmix(0.0, 0.0)(key, images, targets)
  never = jax.jit(batch_augment.MixupCutmix(0.8, 1.0, probability=0.0))(
    key, images, targets
  )
  chex.assert_trees_all_equal(off, never, (images, targets))
  erased = batch_augment.RandomErasing(0.0)(key, images)
  np.testing.assert_array_equal(erased, images)


def test_erased_boxes_have_the_areas_and_ratios_asked_for():
  erasing = batch_augment.RandomErasing(1.0)
  top, left, bottom, right = np.array(
    erasing.sample_boxes(jax.random.key(0), 4000, 224, 224)
  ).T
  height, width = bottom - top, right - left
  assert (height > 0).all() and (width > 0).all()
  assert top.min() == 0 and left.min() == 0
  assert bottom.max() == 224 and right.max() == 224
  area, log_ratio = height * width / 224**2, np.log(height / width)
  assert area.min() > 0.018 and area.max() < 0.336
  assert np.abs(log_ratio).max() < np.log(1 / 0.3) + 0.05
  # The ten tries of the loop, which leave out what does not fit.
  rng = np.random.default_rng(0)
  expected = np.array([try_boxes(rng, 224) for _ in range(4000)])
  for got, column in ((area, 0), (log_ratio, 1)):
    np.testing.assert_allclose(
      np.quantile(got, [0.1, 0.3, 0.5, 0.7, 0.9]),
      np.quantile(expected[:, column], [0.1, 0.3, 0.5, 0.7, 0.9]),
      atol=0.012 if column == 0 else 0.08,
    )
  np.testing.assert_allclose((top / (224 - height)).mean(), 0.5, atol=0.02)
  np.testing.assert_allclose((left / (224 - width)).mean(), 0.5, atol=0.02)


def try_boxes(rng, size):
  """Area and log ratio of a box, as the loop of the source draws it."""
  for _ in range(10):
    area = rng.uniform(0.02, 1 / 3) * size**2
    ratio = np.exp(rng.uniform(np.log(0.3), np.log(1 / 0.3)))
    height, width = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
    if height < size and width < size:
      return height * width / size**2, np.log(height / width)
  raise AssertionError('unlikely')


def test_image_that_no_box_fits_is_left_alone():
  erasing = batch_augment.RandomErasing(1.0, area=(2.0, 3.0))
  images, _ = batch()
  np.testing.assert_array_equal(
    jax.jit(erasing)(jax.random.key(0), images), images
  )


def test_erasing_puts_normal_noise_into_a_box_of_some_images():
  images = jnp.full((400, 16, 16, 3), 100.0)
  erased = np.array(
    jax.jit(batch_augment.RandomErasing(0.25))(jax.random.key(0), images)
  )
  changed = (erased != 100).any(axis=3)
  np.testing.assert_allclose(changed.any(axis=(1, 2)).mean(), 0.25, atol=0.06)
  box = changed.any(axis=2)[:, :, None] & changed.any(axis=1)[:, None, :]
  np.testing.assert_array_equal(changed, box)
  noise = erased[changed]
  np.testing.assert_allclose([noise.mean(), noise.std()], [0, 1], atol=0.03)
  # Each pixel, channel and image has a value of its own.
  assert len(np.unique(noise)) > 0.99 * noise.size


def test_sharded_batch_gives_the_same_result():
  images, targets = batch(count=16)

  @jax.jit
  def augment(images, targets):
    images = batch_augment.RandomErasing(0.5)(KEYS[0], images)
    return batch_augment.MixupCutmix(0.8, 1.0, group_size=8)(
      KEYS[1], images, targets
    )

  mesh = Mesh(np.array(jax.devices()), 'data')
  sharding = NamedSharding(mesh, PartitionSpec('data'))
  sharded = augment(*jax.device_put((images, targets), sharding))
  chex.assert_trees_all_close(sharded, augment(images, targets), atol=1e-6)


class Linear(nn.Module):
  """Logits that are a linear function of the pixels."""

  @nn.compact
  def __call__(self, x, *, train):
    return nn.Dense(10)(x.reshape(len(x), -1))


def test_loss_is_that_of_normalised_erased_and_mixed_images(monkeypatch):
  monkeypatch.setattr(models, 'create_model', lambda **fields: Linear())
  config = imagenet.pvt('pvt_tiny', stage_sizes=(2, 2, 2, 2))
  config.model.num_classes = 10
  task = classification.Classification(config)
  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 256, (8, 12, 12, 3)).astype(np.uint8)
  labels = jnp.asarray(rng.integers(0, 10, 8))
  key = jax.random.key(4)
  images = (pixels / 255 - config.data.mean) / config.data.std
  params = Linear().init(key, jnp.zeros((1, 12, 12, 3)), train=True)['params']
  loss, (state, metrics) = jax.jit(task.loss)(
    params, {}, {'image': jnp.asarray(pixels), 'label': labels}, key
  )
  assert state == {}

  _, erasing_key, mixup_key = jax.random.split(key, 3)
  images = jax.jit(batch_augment.RandomErasing(0.25))(
    erasing_key, jnp.asarray(images, jnp.float32)
  )
  targets = jnp.eye(10)[labels] * 0.9 + 0.01
  images, targets = jax.jit(batch_augment.MixupCutmix(0.8, 1.0))(
    mixup_key, images, targets
  )
  logits = np.array(Linear().apply({'params': params}, images, train=True))
  shifted = logits - logits.max(axis=1, keepdims=True)
  log_probs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
  expected = -(np.array(targets) * log_probs).sum(axis=1).mean()
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  dominant = np.array(targets).argmax(axis=1)
  np.testing.assert_allclose(
    metrics['top1'], (logits.argmax(axis=1) == dominant).mean()
  )


@pytest.mark.parametrize(
  'make, message',
  [
    (
      lambda: batch_augment.MixupCutmix(0.8, 1.0, 1.5),
      'augment.mixup_probability=1.5',
    ),
    (
      lambda: batch_augment.MixupCutmix(0.8, 1.0, 1.0, -1),
      'mixup_switch_probability=-1',
    ),
    (lambda: batch_augment.MixupCutmix(-0.8, 1.0), 'augment.mixup_alpha=-0.8'),
    (lambda: batch_augment.MixupCutmix(0.8, np.nan), 'cutmix_alpha=nan'),
    (
      lambda: batch_augment.MixupCutmix(0.8, 1.0, group_size=-1),
      'mixup_group_size=-1',
    ),
    (lambda: batch_augment.RandomErasing(2), 'augment.erasing_probability=2'),
    (lambda: batch_augment.RandomErasing(np.nan), 'erasing_probability=nan'),
    (lambda: batch_augment.RandomErasing(0.5, (0.3, 0.2)), 'area='),
    (lambda: batch_augment.RandomErasing(0.5, ratio=(0, 2)), 'ratio='),
  ],
)
def test_bad_arguments_are_named(make, message):
  with pytest.raises(ValueError, match=message):
    make()
