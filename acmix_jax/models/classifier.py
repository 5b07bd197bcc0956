"""Classifiers: a backbone with a head that gives logits."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from acmix_jax.models.backbones import pvt
from acmix_jax.nn import layers, transformer


class Head(nn.Module):
  """Base of the heads: a backbone's stages to logits [b, classes].

  Attributes:
    num_classes: Number of logits.
    dtype: Computation dtype.
    param_dtype: Parameter dtype.
  """

  num_classes: int
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32

  def backbone_inputs(self, channels: dict[str, int]) -> dict[str, Any]:
    """What a backbone with these channels is called with besides images."""
    return {}


class PooledHead(Head):
  """dense(mean(x)) of the last stage's map x: the head of ResNet and SAN."""

  @nn.compact
  def __call__(self, stages: dict[str, jax.Array]) -> jax.Array:
    """Maps {'stage1': [b, h, w, c], ...} to [b, classes]."""
    dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    *_, x = stages.values()
    dense = layers.Dense(self.num_classes, **dtypes, name='dense')
    return dense(x.mean(axis=(1, 2)))


class NormPooledHead(Head):
  """dense(mean(norm(x))) of the last stage's map x: the head of Swin."""

  @nn.compact
  def __call__(self, stages: dict[str, jax.Array]) -> jax.Array:
    """Maps {'stage1': [b, h, w, c], ...} to [b, classes]."""
    dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    *_, x = stages.values()
    x = nn.LayerNorm(1e-5, **dtypes, name='norm')(x)
    dense = transformer.dense(self.num_classes, **dtypes, name='dense')
    return dense(x.mean(axis=(1, 2)))


class TokenHead(Head):
  """dense(norm(token)) of the class token after the last stage: PVT's head."""

  def setup(self):
    dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    self.norm = nn.LayerNorm(pvt.EPSILON, **dtypes)
    self.dense = transformer.dense(self.num_classes, **dtypes)

  @nn.compact
  def backbone_inputs(self, channels: dict[str, int]) -> dict[str, Any]:
    """The class token [c] with its position."""
    *_, features = channels.values()
    token, position = (
      self.param(name, transformer.NORMAL, (features,), self.param_dtype)
      for name in ('token', 'token_position')
    )
    return {'token': token + position}

  def __call__(self, stages: dict[str, jax.Array]) -> jax.Array:
    """Maps {'token': [b, c], ...} to [b, classes]."""
    return self.dense(self.norm(stages['token']))


class Classifier(nn.Module):
  """A head on a backbone; variables {'backbone', 'head'} of each collection.

  Attributes:
    backbone: Backbone.
    head: Head.
  """

  backbone: nn.Module
  head: Head

  def features(
    self, images: jax.Array, *, train: bool = False
  ) -> dict[str, jax.Array]:
    """Maps images [b, h, w, 3] to {'stage1': [b, h/4, w/4, c], ...}."""
    return self.backbone(images, train=train)

  def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
    """Maps normalised images [b, h, w, 3] to float32 logits [b, classes]."""
    inputs = self.head.backbone_inputs(self.backbone.channels)
    stages = self.backbone(images, train=train, **inputs)
    return self.head(stages).astype(jnp.float32)
