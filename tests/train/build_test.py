"""A training as it is built: state, frozen parameters, compilations."""

import chex
import jax
import numpy as np
import pytest

from acmix_jax import tasks
from acmix_jax.train import build, loop
from acmix_jax.train import mesh as mesh_lib
from acmix_jax.train import state as state_lib
from configs import imagenet
from tests.train import pixel_task


def _config(**optim):
  config = imagenet.resnet('none', stage_sizes=())
  config.train.batch_size = config.eval.batch_size = pixel_task.BATCH_SIZE
  config.train.num_steps = 6
  config.optim.warmup_epochs = 0.0
  config.optim.update(optim)
  return config


def _training(config, task=None):
  task = task or pixel_task.PixelTask()
  return build.Training(config, mesh_lib.make_mesh(config.mesh), task)


def _updates(training, count):
  """Parameters at the start and the end, and the metrics of each update."""
  state = training.init(jax.random.key(0))
  before = jax.device_get(state.params)
  metrics = []
  for step in range(count):
    batch = mesh_lib.to_devices(training.task.batch(step), training.mesh)
    state, last = training.update(state, batch)
    metrics.append(jax.device_get(last))
  return before, jax.device_get(state), metrics


def test_a_run_compiles_its_update_once_for_each_canvas(tmp_path, monkeypatch):
  make_train_step = state_lib.make_train_step

  def make_counted(*args, **options):
    return chex.assert_max_traces(
      make_train_step(*args, **options), len(pixel_task.CANVASES)
    )

  monkeypatch.setattr(state_lib, 'make_train_step', make_counted)
  monkeypatch.setattr(tasks, 'make_task', lambda _: pixel_task.PixelTask())
  chex.clear_trace_counter()
  metrics = loop.run(_config(), str(tmp_path))
  assert metrics['accuracy'] > 0.5
  again = _config()
  again.train.num_steps = 9
  chex.clear_trace_counter()
  loop.run(again, str(tmp_path))  # Resumes on the other canvas.


def test_the_state_is_that_of_its_shapes():
  training = _training(_config())
  state = training.init(jax.random.key(0))
  chex.assert_trees_all_equal_shapes_and_dtypes(state, training.state_shapes)
  assert jax.tree.map(lambda x: x.sharding, state) == jax.tree.map(
    lambda x: x.sharding, training.state_shapes
  )


def test_epochs_become_steps():
  config = _config()
  config.train.num_steps, config.train.num_epochs = 0, 7
  assert _training(config).num_steps == 14


@pytest.mark.parametrize('where', ['config', 'task'])
def test_frozen_parameters_keep_out_of_everything(where):
  config = _config(weight_decay=0.5, clip_norm=1e-3, reference_batch_size=0)
  task = pixel_task.PixelTask()
  if where == 'config':
    config.optim.groups.frozen.pattern = 'offset'
  else:
    task.frozen = 'offset'
  training = _training(config, task)
  before, state, (metrics,) = _updates(training, 1)
  assert state.params['offset'] == before['offset']
  # Neither the clipped norm nor the reported one has a part of theirs: the
  # whole clipped gradient is that of the one trained parameter.
  gradient = jax.grad(
    lambda scale: task.loss(
      {'scale': scale, 'offset': before['offset']}, {}, task.batch(0), None
    )[0]
  )(before['scale'])
  np.testing.assert_allclose(metrics['grad_norm'], abs(gradient), rtol=1e-5)
  moved = before['scale'] - state.params['scale']
  expected = 0.1 * (1e-3 * np.sign(gradient) + 0.5 * before['scale'])
  np.testing.assert_allclose(moved, expected, rtol=1e-4)
  # Momentum of 'scale', and the schedule's count.
  assert len(jax.tree.leaves(state.opt_state)) == 2


def test_a_frozen_pattern_of_the_task_is_named():
  task = pixel_task.PixelTask()
  task.frozen = 'stem'
  with pytest.raises(ValueError, match="task.frozen='stem' matches no param"):
    _training(_config(), task)
