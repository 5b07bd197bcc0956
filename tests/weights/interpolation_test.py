"""Position tables of other sizes, against OpenCV and by name of variable."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import acmix_jax
from acmix_jax import models, weights
from acmix_jax.weights import interpolation, names
from tests.fixtures import official


def _resized(grid, size, flag):
  """OpenCV's result, which has the cubic of PyTorch and the same borders."""
  channels = [
    cv2.resize(np.ascontiguousarray(grid[..., i]), size[::-1], None, 0, 0, flag)
    for i in range(grid.shape[-1])
  ]
  return np.stack(channels, axis=-1)


def _random(*shape):
  return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize('old, new', [(7, 12), (12, 7), (3, 4), (2, 9)])
def test_biases_of_windows_are_interpolated_bicubically(old, new):
  name = 'params/backbone/stage2_1/operator/attention/bias'
  old, new = 2 * old - 1, 2 * new - 1
  table = _random(old, old, 3)
  fitted = interpolation.fit(
    {name: table.reshape(-1, 3)}, {name: (new * new, 3)}
  )[name]
  np.testing.assert_allclose(
    fitted.reshape(new, new, 3),
    _resized(table, (new, new), cv2.INTER_CUBIC),
    atol=2e-5,
  )


@pytest.mark.parametrize('old, new', [(7, 12), (12, 7), (14, 24), (7, 8)])
def test_embeddings_are_interpolated_bilinearly(old, new):
  name = 'params/backbone/stage3_position'
  grid = _random(old, old, 5)
  fitted = interpolation.fit({name: grid}, {name: (new, new + 2, 5)})[name]
  np.testing.assert_allclose(
    fitted, _resized(grid, (new, new + 2), cv2.INTER_LINEAR), atol=2e-6
  )


@pytest.mark.parametrize(
  'name, old, new',
  [
    ('params/backbone/stage1_0/operator/bias', (9, 2), (25, 3)),
    ('params/backbone/stage1_0/operator/bias', (9, 2), (24, 2)),
    ('params/backbone/stage1_0/operator/bias', (8, 2), (25, 2)),
    ('params/backbone/stage1_0/operator/bias', (9,), (25,)),
    ('params/backbone/stage1_0/operator/out/bias', (9, 2), (25, 2)),
    ('params/backbone/stage1_position', (7, 7, 2), (8, 8, 3)),
    ('params/backbone/stage1_position', (1, 49, 2), (8, 8)),
    ('params/head/token_position', (4,), (9,)),
  ],
)
def test_nothing_else_is_touched(caplog, name, old, new):
  caplog.set_level('INFO', 'acmix_jax')
  table = _random(*old)
  assert interpolation.fit({name: table}, {name: new})[name] is table
  assert not caplog.records


def _variables(name, **fields):
  model = models.create_model(name, num_classes=2, **fields)
  return jax.eval_shape(
    model.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3))
  )


def _zeros(shapes):
  return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)


@pytest.mark.parametrize(
  'name, old, new',
  [
    ('swin_tiny', {'window_size': 7}, {'window_size': 12}),
    ('swin_tiny_acmix', {'window_size': 12}, {'window_size': 7}),
    ('pvt_tiny', {'image_size': 224}, {'image_size': 384}),
    ('pvt_tiny_acmix', {'image_size': 224}, {'image_size': 160}),
  ],
)
def test_a_model_takes_weights_of_another_size_and_says_so(
  caplog, name, old, new
):
  sizes = {'stage_sizes': (1, 1, 1, 1)}
  loaded = _zeros(_variables(name, **sizes, **old))
  wanted = _variables(name, **sizes, **new)
  caplog.set_level('INFO', 'acmix_jax')
  assigned = weights.assign(wanted, loaded)
  assert jax.tree.map(jnp.shape, assigned) == jax.tree.map(jnp.shape, wanted)
  (record,) = caplog.records
  assert 'Position tables: 4 interpolated' in record.getMessage()


@pytest.mark.parametrize(
  'name, fields, variable, size',
  [
    (
      'swin_tiny',
      {'window_size': 8},
      'params/backbone/stage2_1/operator/bias',
      15 * 15,
    ),
    ('pvt_tiny', {'image_size': 256}, 'params/backbone/stage4_position', 8),
  ],
)
def test_official_weights_are_converted_to_another_size(
  name, fields, variable, size
):
  entries, _, _ = official.model(name)
  plain = names.flatten(acmix_jax.from_torch(name, entries))
  other = names.flatten(acmix_jax.from_torch(name, entries, **fields))
  assert other[variable].shape[0] == size
  expected = interpolation.fit(plain, {variable: other[variable].shape})
  np.testing.assert_array_equal(other[variable], expected[variable])
  changed = {name for name in plain if plain[name].shape != other[name].shape}
  assert len(changed) == {'swin_tiny': 12, 'pvt_tiny': 4}[name]
