"""A task on images of two canvases, small enough to work out by hand."""

import jax
import jax.numpy as jnp
import numpy as np

CANVASES = ((2, 4), (4, 2))
BATCH_SIZE = 8


class Batches:
  """See `tasks.task.Batches`."""

  damaged = 0
  names = ()

  def __init__(self, batches):
    self._batches = iter(batches)

  def __iter__(self):
    return self

  def __next__(self):
    return next(self._batches)

  def close(self):
    pass


class Confusion:
  """Adds confusion matrices up: 'accuracy' over all pixels."""

  def __init__(self):
    self.matrix = np.zeros((2, 2), np.int64)

  def update(self, predictions):
    self.matrix += predictions

  def result(self):
    right = int(np.trace(self.matrix))
    return {'accuracy': right / int(self.matrix.sum()), 'count': right}

  def arrays(self):
    return {'matrix': self.matrix}


class PixelTask:
  """Tells dark pixels from bright ones; every second batch is portrait."""

  steps_per_epoch = 2
  best_metric = 'accuracy'
  replaceable = ''
  frozen = ''

  def batch_shapes(self, split):
    return tuple(
      {
        'image': jax.ShapeDtypeStruct((BATCH_SIZE, *canvas), jnp.float32),
        'id': jax.ShapeDtypeStruct((BATCH_SIZE,), jnp.int32),
        'mask': jax.ShapeDtypeStruct((BATCH_SIZE,), jnp.bool_),
      }
      for canvas in CANVASES
    )

  def description(self, split):
    return {}

  def batch(self, step, examples=BATCH_SIZE):
    """Batch of a step; the rows from `examples` on only pad it."""
    shape = BATCH_SIZE, *CANVASES[step % 2]
    image = np.random.default_rng(step).normal(size=shape).astype(np.float32)
    return {
      'image': image,
      'id': np.arange(BATCH_SIZE, dtype=np.int32) + 100 * step,
      'mask': np.arange(BATCH_SIZE) < examples,
    }

  def train_data(self, start_step, process_index, process_count):
    return Batches(self.batch(step) for step in range(start_step, 10**6))

  def eval_data(self, process_index, process_count):
    return Batches([self.batch(0), self.batch(1), self.batch(2, examples=3)])

  def init(self, rng):
    return {'params': {'scale': jnp.ones(()), 'offset': jnp.float32(0.5)}}

  def loss(self, params, model_state, batch, rng):
    logits = params['scale'] * batch['image'] + params['offset']
    bright = batch['image'] > 0
    loss = jnp.mean(jnp.logaddexp(0.0, jnp.where(bright, -logits, logits)))
    return loss, (model_state, {})

  def predict(self, params, model_state, batch):
    """Numbers of pixels by true and predicted class, int32 [2, 2]."""
    predicted = params['scale'] * batch['image'] + params['offset'] > 0
    truth = batch['image'] > 0
    counted = jnp.broadcast_to(batch['mask'][:, None, None], truth.shape)
    matrix = jnp.zeros((2, 2), jnp.int32)
    return matrix.at[truth.astype(int), predicted.astype(int)].add(counted)

  def evaluator(self):
    return Confusion()
