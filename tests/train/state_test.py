"""The update as a function, and where its state lives."""

import re

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from acmix_jax.ops import local_attention
from acmix_jax.train import build, groups, state
from acmix_jax.train import mesh as mesh_lib
from configs import imagenet


class Regression:
  """A linear task without batch statistics that shows its random numbers."""

  frozen = ''

  def init(self, rng):
    return {'params': {'w': jax.random.normal(rng, (3,))}}

  def loss(self, params, model_state, batch, rng):
    error = batch['x'] @ params['w'] - batch['y']
    metrics = {
      'error': jnp.mean(jnp.abs(error)),
      'random': jax.random.normal(rng),
    }
    return jnp.mean(error**2), (model_state, metrics)


def _batch(rows):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(rows, 3)).astype(np.float32)
  return {'x': x, 'y': rng.normal(size=rows).astype(np.float32)}


RULES = {'w': groups.Rule()}


def _step(state_, batch, accumulate_steps=1, ema_decay=0.0):
  step = state.make_train_step(
    Regression(),
    optax.sgd(0.1),
    RULES,
    seed=0,
    accumulate_steps=accumulate_steps,
    ema_decay=ema_decay,
  )
  return jax.jit(step)(state_, batch)


def _init(ema_decay=0.0):
  variables = Regression().init(jax.random.key(0))
  return state.start_state(
    variables, optax.sgd(0.1), RULES, ema_decay=ema_decay
  )


def test_step_is_the_gradient_step():
  start, batch = _init(), _batch(8)
  w = np.asarray(start.params['w'])
  error = batch['x'] @ w - batch['y']
  gradient = 2 * batch['x'].T @ error / 8
  after, metrics = _step(start, batch)
  np.testing.assert_allclose(after.params['w'], w - 0.1 * gradient, rtol=1e-5)
  assert metrics['loss'] == pytest.approx(np.mean(error**2), rel=1e-5)
  assert metrics['error'] == pytest.approx(np.mean(np.abs(error)), rel=1e-5)
  assert metrics['grad_norm'] == pytest.approx(
    np.linalg.norm(gradient), rel=1e-5
  )
  assert after.step == 1 and after.ema is None


@pytest.mark.parametrize('parts', [2, 4])
def test_accumulation_equals_the_whole_batch(parts):
  start, batch = _init(), _batch(8)
  whole, metrics = _step(start, batch)
  ours, our_metrics = _step(start, batch, parts)
  np.testing.assert_allclose(ours.params['w'], whole.params['w'], rtol=1e-5)
  for name in ('loss', 'error', 'grad_norm'):
    np.testing.assert_allclose(our_metrics[name], metrics[name], rtol=1e-5)


def test_steps_and_parts_draw_random_numbers_of_their_own():
  start, batch = _init(), _batch(8)
  second, metrics = _step(start, batch)
  draws = [
    metrics['random'],
    _step(second, batch)[1]['random'],
    _step(start, batch, 2)[1]['random'],
  ]
  assert len({float(draw) for draw in draws}) == 3
  assert _step(start, batch)[1]['random'] == draws[0]


def test_averages_follow_the_variables():
  start = _init(ema_decay=0.5)
  after, _ = _step(start, _batch(8), ema_decay=0.5)
  np.testing.assert_allclose(
    after.ema['params']['w'],
    0.1 * start.params['w'] + 0.9 * after.params['w'],
    rtol=1e-5,
  )
  assert after.evaluated()[0] is after.ema['params']


@pytest.mark.parametrize(
  'shape, model, spec',
  [
    ((3, 3, 512, 512), 4, (None, None, None, 'model')),
    ((1024, 512), 4, ('model',)),
    ((1024, 511), 4, ('model',)),
    ((511, 1024), 4, (None, 'model')),
    ((511, 513), 4, ()),  # No axis divides.
    ((2048,), 4, ()),  # Small.
    ((), 4, ()),
    ((3, 3, 512, 512), 1, ()),
  ],
)
def test_largest_divisible_axis_is_split(shape, model, spec):
  assert mesh_lib.parameter_spec(shape, model) == PartitionSpec(*spec)


def test_state_lies_as_the_rule_says(monkeypatch):
  monkeypatch.setattr(mesh_lib, 'MIN_SHARDED_SIZE', 1)
  mesh = mesh_lib.make_mesh(ml_collections.ConfigDict({'data': -1, 'model': 4}))
  assert dict(mesh.shape) == {'data': 2, 'model': 4}
  shapes = mesh_lib.with_shardings(
    {'w': jax.ShapeDtypeStruct((8, 3), 'f4')}, mesh
  )
  w = jax.device_put(np.ones((8, 3), np.float32), shapes['w'].sharding)
  assert {shard.data.shape for shard in w.addressable_shards} == {(2, 3)}
  batch = mesh_lib.to_devices({'x': np.ones((16, 2))}, mesh)
  assert {s.data.shape for s in batch['x'].addressable_shards} == {(2, 2)}


class Attending:
  """A task that is little but a fused kernel."""

  frozen = ''

  def init(self, rng):
    return {'params': {'w': jnp.ones(())}}

  def predict(self, params, model_state, batch):
    q = batch['x'] * params['w']
    out = local_attention.local_attention(
      q, q, q, kernel_size=3, implementation='pallas'
    )
    return out.sum((1, 2, 3, 4))

  def loss(self, params, model_state, batch, rng):
    return self.predict(params, model_state, batch).sum(), (model_state, {})


def test_compiled_steps_split_the_images_of_kernels():
  mesh = mesh_lib.make_mesh(ml_collections.ConfigDict({'data': -1, 'model': 2}))
  training = build.Training(
    imagenet.resnet('none', stage_sizes=()),
    mesh,
    Attending(),
    steps_per_epoch=10,
  )
  start = training.state_shapes
  x = jax.ShapeDtypeStruct(
    (16, 3, 4, 1, 16), 'float32', sharding=mesh_lib.batch_sharding(mesh)
  )
  for compiled, arguments, kernels in (
    (training.update, [start], 2),
    (training.predict, start.evaluated(), 1),
  ):
    # Lowering for several TPUs fails where a kernel is given all images.
    lowered = compiled.trace(*arguments, {'x': x}).lower(
      lowering_platforms=('tpu',)
    )
    calls = re.findall(r'tpu_custom_call.*\(tensor<(\d+)x', lowered.as_text())
    assert calls == ['2'] * kernels


def test_incomplete_process_variables_are_named(monkeypatch):
  monkeypatch.setenv('JAX_COORDINATOR_ADDRESS', 'host:1')
  monkeypatch.setenv('JAX_PROCESS_ID', '0')
  with pytest.raises(ValueError, match='not JAX_NUM_PROCESSES'):
    mesh_lib.initialize_processes()
