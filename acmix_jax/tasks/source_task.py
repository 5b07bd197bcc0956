"""What the tasks have in common whose examples come from `data.sources`."""

import functools
from typing import Any

import jax
import ml_collections

from acmix_jax import models
from acmix_jax.data import order, pipeline, sources, transforms
from acmix_jax.tasks import normalization


class SourceTask:
  """Base of the tasks on a data set with classes; see `tasks.Task`.

  A subclass adds the loss, the predictions and their scores.

  Attributes:
    config: Whole config, see configs/common.py.
    model: Model that `config.model` names, with a `backbone`.

  Raises:
    ValueError: A field of the model or of the normalisation is out of range;
      later, the data has other classes than the model.
  """

  # A subclass sets what belongs to its images, see `sources.make_source`, and
  # the transforms: that of training as a cached property, for evaluation must
  # not fail at fields that it does not use.
  _labels: str | None = None
  _train_transform: transforms.Transform
  _eval_transform: transforms.Transform

  def __init__(self, config: ml_collections.ConfigDict):
    self.config = config
    self.model = models.create_model(**config.model)
    self._normalize = normalization.Normalization(config.data)

  def _check_training(self):
    """Raises a ValueError for a field of training alone that cannot work."""
    repeats = self.config.data.repeats
    if repeats < 1:
      raise ValueError(f'data.repeats={repeats}; 1 shows every image once.')
    _ = self._train_transform

  def _check_source(self, source):
    """Raises a ValueError for data that a subclass cannot work with."""

  def _open(self, split):
    data, num_classes = self.config.data, self.config.model.num_classes
    source = sources.make_source(data, split, self._labels)
    self._check_source(source)
    if source.num_classes != num_classes:
      raise ValueError(
        f'model.num_classes={num_classes}, but data {data.name!r} has '
        f'{source.num_classes} classes; set model.num_classes='
        f'{source.num_classes}.'
      )
    return source

  @functools.cached_property
  def _train_source(self):
    # What is wrong with either split is told before anything is compiled.
    _ = self._eval_examples
    return self._open(self.config.data.train_split)

  @functools.cached_property
  def _eval_source(self):
    return self._open(self.config.data.eval_split)

  @property
  def _eval_examples(self):
    """The evaluation split, as its transform takes it."""
    return self._eval_source

  @property
  def frozen(self) -> str:
    """See `tasks.Task`: what the backbone does not train."""
    pattern = self.model.backbone.frozen_parameters()
    return f'^backbone/{pattern}$' if pattern else ''

  @property
  def steps_per_epoch(self) -> int:
    """Whole batches in the training split, at least 1.

    Raises:
      ValueError: A field of training, or the data, cannot work.
    """
    self._check_training()
    return order.steps_per_epoch(
      self._train_source, self.config.train.batch_size
    )

  def train_data(
    self, start_step: int, process_index: int, process_count: int
  ) -> pipeline.Batches:
    """See `tasks.Task`."""
    return pipeline.train_batches(
      self._train_source,
      self._train_transform,
      batch_size=self.config.train.batch_size,
      seed=self.config.seed,
      repeats=self.config.data.repeats,
      start_step=start_step,
      process_index=process_index,
      process_count=process_count,
      **self._reading(),
    )

  def eval_data(
    self, process_index: int, process_count: int
  ) -> pipeline.Batches:
    """See `tasks.Task`."""
    return pipeline.eval_batches(
      self._eval_examples,
      self._eval_transform,
      batch_size=self.config.eval.batch_size,
      process_index=process_index,
      process_count=process_count,
      **self._reading(),
    )

  def _reading(self):
    data = self.config.data
    return {name: data[name] for name in ('threads', 'workers', 'max_damaged')}

  def _shapes(self, split, arrays):
    """Shapes of a batch whose examples have arrays of (shape, dtype) by key."""
    rows = self.config[split].batch_size
    return {
      key: jax.ShapeDtypeStruct((rows, *shape), dtype)
      for key, (shape, dtype) in arrays.items()
    }

  def _padded_images(self, batch):
    """The normalised images of a batch with `size`; the sources pad after."""
    return self._normalize.padded(batch['image'], batch['size'])

  def _apply(self, params, model_state, *inputs, **options):
    """Applies the model."""
    variables = {'params': params, **model_state}
    return self.model.apply(variables, *inputs, **options)

  def _learn(self, params, model_state, *inputs, **options):
    """Applies the model in training: (outputs, new state)."""
    outputs, model_state = self._apply(
      params, model_state, *inputs, mutable=list(model_state), **options
    )
    return outputs, dict(model_state)

  def description(self, split: str) -> dict[str, Any]:
    """See `tasks.Task`."""
    source = self._train_source if split == 'train' else self._eval_source
    return {'class_names': list(source.class_names), 'images': len(source)}
