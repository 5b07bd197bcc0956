"""The loss of pixels against mmsegmentation and against whole arrays."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from acmix_jax.tasks import pixel_loss

HEADS = (
  pathlib.Path(__file__).parents[1] / 'fixtures' / 'segmentation' / 'heads'
)


def _maps(arrays, name):
  return jnp.asarray(arrays[f'train/{name}'].transpose(0, 2, 3, 1))


@pytest.mark.parametrize('bands', [1, 7])
@pytest.mark.parametrize('name', ['fpn_odd', 'uper_odd'])
def test_losses_and_accuracies_of_the_source(name, bands, monkeypatch):
  arrays = np.load(HEADS / f'{name}.npz')
  labels = jnp.asarray(arrays['label'])
  monkeypatch.setattr(
    pixel_loss, '_BAND_SIZE', labels[0].size * 7 / (bands - 0.5)
  )
  for head, logits, weight in (
    ('decode', 'logits', 1),
    ('aux', 'aux_logits', 0.4),
  ):
    if f'train/{logits}' not in arrays:
      continue
    sums = jax.jit(pixel_loss.pixel_sums)(_maps(arrays, logits), labels)
    assert sums.labelled == np.sum(arrays['label'] != 255) < labels.size
    for reduction, pixels in (('all', labels.size), ('valid', sums.labelled)):
      np.testing.assert_allclose(
        weight * sums.loss / pixels,
        arrays[f'loss/mean_{reduction}/{head}'],
        rtol=1e-6,
      )
      np.testing.assert_allclose(
        100 * sums.correct / pixels,
        arrays[f'accuracy/{head}_{reduction}'][0],
        rtol=1e-6,
      )


def test_gradient_is_that_of_whole_arrays(monkeypatch):
  rng = np.random.default_rng(0)
  logits = jnp.asarray(rng.normal(size=(2, 7, 5, 4)), jnp.float32)
  labels = rng.integers(0, 4, (2, 23, 20)).astype(np.uint8)
  labels[:, 3:6] = labels[1, :, 9:] = 255
  monkeypatch.setattr(pixel_loss, '_BAND_SIZE', 23 * 20 * 4 / 2.5)

  def whole(logits):
    logits = jax.image.resize(
      logits, (2, 23, 20, 4), 'bilinear', antialias=False
    )
    known = labels != 255
    losses = optax.softmax_cross_entropy_with_integer_labels(
      logits, jnp.where(known, labels, 0).astype(jnp.int32)
    )
    return jnp.where(known, losses, 0).sum()

  def in_bands(logits):
    return pixel_loss.pixel_sums(logits, jnp.asarray(labels)).loss

  expected, gradient = jax.jit(jax.value_and_grad(whole))(logits)
  ours, our_gradient = jax.jit(jax.value_and_grad(in_bands))(logits)
  np.testing.assert_allclose(ours, expected, rtol=1e-6)
  np.testing.assert_allclose(our_gradient, gradient, atol=1e-5)


def test_nothing_labelled_gives_no_loss_and_no_gradient():
  logits = jnp.ones((1, 2, 2, 3))
  labels = jnp.full((1, 8, 8), 255, jnp.uint8)
  sums, gradient = jax.jit(
    jax.value_and_grad(
      lambda logits: pixel_loss.pixel_sums(logits, labels).loss
    )
  )(logits)
  assert sums == 0
  np.testing.assert_array_equal(gradient, 0)


def test_logits_of_all_pixels_never_exist():
  logits = jax.ShapeDtypeStruct((2, 128, 128, 150), jnp.float32)
  labels = jax.ShapeDtypeStruct((2, 512, 512), jnp.uint8)
  update = jax.jit(
    jax.grad(lambda logits, labels: pixel_loss.pixel_sums(logits, labels).loss)
  )
  memory = update.lower(logits, labels).compile().memory_analysis()
  whole = 2 * 512 * 512 * 150 * 4
  assert memory.temp_size_in_bytes < whole / 3
