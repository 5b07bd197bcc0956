"""A small dense task: labels of pixels and boxes, on two canvases.

It is written as a task of the package would be, and needs nothing of its own in
the pipeline, the loop or the evaluation.
"""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from flax import linen as nn

from acmix_jax.data import decode, order, pipeline, transforms
from configs import imagenet
from tests.tasks import dense_run

CANVASES = ((16, 24), (24, 16))  # landscape, portrait
NUM_CLASSES = 4
NUM_BOXES = 2
IGNORED = 255


class Rectangles:
  """Pictures of one or two rectangles, each of the colour of its class.

  The examples have `image`, `label_map` (0: background), `boxes` [2, 4] with
  `valid` [2], `canvas`, and `image_id`, which is no index.
  """

  def __init__(self, length: int, seed: int, damaged: tuple[int, ...] = ()):
    rng = np.random.default_rng(seed)
    self._seed, self._damaged = seed, damaged
    self.canvases = rng.integers(0, 2, length)
    self.sizes = np.array(CANVASES)[self.canvases]
    self.sizes -= rng.integers(0, 4, (length, 2))

  def __len__(self):
    return len(self.canvases)

  def __getitem__(self, index):
    if index in self._damaged:
      raise decode.DecodeError(f'rectangles {index}')
    rng = np.random.default_rng((self._seed, index))
    height, width = self.sizes[index]
    label_map = np.zeros((height, width), np.uint8)
    boxes = np.zeros((NUM_BOXES, 4), np.float32)
    count = rng.integers(1, NUM_BOXES + 1)
    for box in boxes[:count]:
      top, left = rng.integers(0, (height - 4, width - 4))
      bottom, right = rng.integers((top + 3, left + 3), (height, width))
      label_map[top:bottom, left:right] = rng.integers(1, NUM_CLASSES)
      box[:] = left, top, right, bottom
    image = rng.integers(0, 60, (height, width, 3)).astype(np.uint8)
    for channel in range(3):
      image[..., channel] += 190 * (label_map == channel + 1).astype(np.uint8)
    return {
      'image': image,
      'label_map': label_map,
      'boxes': boxes,
      'valid': np.arange(NUM_BOXES) < count,
      'canvas': self.canvases[index],
      'image_id': np.int32(1000 + index),
      'name': f'rectangles {index}',
    }

  def blank(self, index):
    height, width = self.sizes[index]
    return {
      'image': np.zeros((height, width, 3), np.uint8),
      'label_map': np.full((height, width), IGNORED, np.uint8),
      'boxes': np.zeros((NUM_BOXES, 4), np.float32),
      'valid': np.zeros(NUM_BOXES, bool),
      'canvas': self.canvases[index],
      'image_id': np.int32(-1),
    }


class Model(nn.Module):
  """Logits of the pixels, and boxes in units of the image's sides."""

  @nn.compact
  def __call__(self, images, sizes, *, train=False):
    x = nn.Conv(8, (3, 3), name='conv')(images)
    x = nn.relu(nn.BatchNorm(not train, momentum=0.9, name='norm')(x))
    logits = nn.Dense(NUM_CLASSES, name='labels')(x)
    pooled = x.sum(axis=(1, 2)) / sizes.prod(axis=1, keepdims=True)
    boxes = nn.Dense(4 * NUM_BOXES, name='boxes')(pooled)
    return logits, nn.sigmoid(boxes.reshape(-1, NUM_BOXES, 4))


class Evaluator:
  """Mean intersection over union, and errors of boxes by image id."""

  def __init__(self, source: Rectangles):
    self._source = source
    self._confusion = np.zeros((NUM_CLASSES, NUM_CLASSES), np.int64)
    self._errors = {}

  def update(self, predictions):
    self._confusion += predictions['confusion']
    for row in np.flatnonzero(predictions['mask']):
      image_id = int(predictions['image_id'][row])
      assert image_id not in self._errors
      example = self._source[image_id - 1000]
      error = np.abs(predictions['boxes'][row] - example['boxes'])
      self._errors[image_id] = error[example['valid']].mean()

  def result(self):
    hits = np.diag(self._confusion)
    union = self._confusion.sum(axis=0) + self._confusion.sum(axis=1) - hits
    return {
      'mean_iou': float(np.nanmean(hits / np.where(union, union, np.nan))),
      'box_error': float(np.mean([*self._errors.values()])),
      'pixels': int(self._confusion.sum()),
      'count': len(self._errors),
    }

  def arrays(self) -> dict[str, np.ndarray]:
    return {}


class ToyDense:
  """See `tasks.Task`."""

  best_metric = 'mean_iou'
  replaceable = '^params/labels/'
  frozen = ''

  def __init__(self, config: ml_collections.ConfigDict):
    self.config = config
    self.model = Model()
    self.sources = {
      'train': Rectangles(37, seed=0, damaged=(5,)),
      'eval': Rectangles(21, seed=1, damaged=(3, 8)),
    }
    self.pad = transforms.Pad(CANVASES, ignored_label=IGNORED)

  @property
  def steps_per_epoch(self):
    return order.steps_per_epoch(
      self.sources['train'], self.config.train.batch_size
    )

  def train_data(self, start_step, process_index, process_count):
    return pipeline.train_batches(
      self.sources['train'],
      transforms.Compose((transforms.RandomFlip(), self.pad)),
      batch_size=self.config.train.batch_size,
      seed=self.config.seed,
      start_step=start_step,
      process_index=process_index,
      process_count=process_count,
    )

  def eval_data(self, process_index, process_count):
    return pipeline.eval_batches(
      self.sources['eval'],
      self.pad,
      batch_size=self.config.eval.batch_size,
      process_index=process_index,
      process_count=process_count,
    )

  def description(self, split):
    return {'images': len(self.sources[split])}

  def batch_shapes(self, split):
    batch = self.config[split].batch_size
    return tuple(
      {
        'image': jax.ShapeDtypeStruct((batch, *canvas, 3), jnp.uint8),
        'label_map': jax.ShapeDtypeStruct((batch, *canvas), jnp.uint8),
        'boxes': jax.ShapeDtypeStruct((batch, NUM_BOXES, 4), jnp.float32),
        'valid': jax.ShapeDtypeStruct((batch, NUM_BOXES), jnp.bool_),
        'image_id': jax.ShapeDtypeStruct((batch,), jnp.int32),
        'size': jax.ShapeDtypeStruct((batch, 2), jnp.int32),
        'mask': jax.ShapeDtypeStruct((batch,), jnp.bool_),
      }
      for canvas in CANVASES
    )

  def init(self, rng):
    return self.model.init(
      rng, jnp.zeros((1, *CANVASES[0], 3)), jnp.ones((1, 2))
    )

  def _apply(self, params, model_state, batch, **options):
    images = batch['image'].astype(jnp.float32) / 255
    sizes = batch['size'].astype(jnp.float32)
    variables = {'params': params, **model_state}
    return self.model.apply(variables, images, sizes, **options)

  def loss(self, params, model_state, batch, rng):
    del rng
    (logits, boxes), model_state = self._apply(
      params, model_state, batch, train=True, mutable=list(model_state)
    )
    labelled = batch['label_map'] != IGNORED
    labels = jnp.where(labelled, batch['label_map'], 0)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    label_loss = jnp.where(labelled, losses, 0).sum() / labelled.sum()
    sides = jnp.tile(batch['size'][:, ::-1], 2)[:, None, :]
    errors = jnp.abs(boxes - batch['boxes'] / sides).mean(axis=-1)
    box_loss = jnp.where(batch['valid'], errors, 0).sum() / batch['valid'].sum()
    metrics = {'label_loss': label_loss, 'box_loss': box_loss}
    return label_loss + box_loss, (dict(model_state), metrics)

  def predict(self, params, model_state, batch):
    """The confusion matrix of the batch, and boxes in pixels by image."""
    logits, boxes = self._apply(params, model_state, batch)
    # Class NUM_CLASSES stands for no label, and is left out.
    truth = jnp.minimum(batch['label_map'], NUM_CLASSES)
    truth = jax.nn.one_hot(truth, NUM_CLASSES, dtype=jnp.int32)
    predicted = jax.nn.one_hot(logits.argmax(-1), NUM_CLASSES, dtype=jnp.int32)
    sides = jnp.tile(batch['size'][:, ::-1], 2)[:, None, :]
    return {
      'confusion': jnp.einsum('bhwt,bhwp->tp', truth, predicted),
      'boxes': boxes * sides,
      'image_id': batch['image_id'],
      'mask': batch['mask'],
    }

  def evaluator(self):
    return Evaluator(self.sources['eval'])


def get_config(**train) -> ml_collections.ConfigDict:
  """A recipe."""
  config = imagenet.resnet('toy', stage_sizes=())
  config.task = 'toy_dense'
  config.train.update(dense_run.SCHEDULE | train)
  config.optim.warmup_epochs = 0.0
  config.eval.batch_size = 8
  config.mesh.data = 1
  return config.lock()
