"""Classifiers: a backbone with a head that gives logits."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32

from acmix_jax.models.backbones import backbone as backbone_lib
from acmix_jax.models.backbones import pvt
from acmix_jax.nn import layers, transformer


class Head(nn.Module):
  """Base of the heads: a backbone's stages to logits.

  Attributes:
    num_classes: Number of logits.
    dtype: Computation dtype.
    param_dtype: Parameter dtype.
  """

  num_classes: int
  dtype: DTypeLike = jnp.float32
  param_dtype: DTypeLike = jnp.float32

  def backbone_inputs(self, channels: dict[str, int]) -> dict[str, Any]:
    """What a backbone with these channels is called with besides images."""
    return {}


class PooledHead(Head):
  """dense(mean(x)) of the last stage's map x: the head of ResNet and SAN."""

  @nn.compact
  def __call__(self, stages: backbone_lib.Stages) -> Float[Array, 'b k']:
    """Logits of the last stage."""
    dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    *_, x = stages.values()
    dense = layers.Dense(self.num_classes, **dtypes, name='dense')
    return dense(x.mean(axis=(1, 2)))


class NormPooledHead(Head):
  """dense(mean(norm(x))) of the last stage's map x: the head of Swin."""

  @nn.compact
  def __call__(self, stages: backbone_lib.Stages) -> Float[Array, 'b k']:
    """Logits of the last stage."""
    dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    *_, x = stages.values()
    x = layers.LayerNorm(1e-5, **dtypes, name='norm')(x)
    dense = transformer.dense(self.num_classes, **dtypes, name='dense')
    return dense(x.mean(axis=(1, 2)))


class TokenHead(Head):
  """dense(norm(token)) of the class token after the last stage: PVT's head."""

  def setup(self):
    dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    self.norm = layers.LayerNorm(pvt.EPSILON, **dtypes)
    self.dense = transformer.dense(self.num_classes, **dtypes)

  @nn.compact
  def backbone_inputs(self, channels: dict[str, int]) -> dict[str, Any]:
    """The class token with its position."""
    *_, features = channels.values()
    token, position = (
      self.param(name, transformer.NORMAL, (features,), self.param_dtype)
      for name in ('token', 'token_position')
    )
    return {'token': token + position}

  def __call__(self, stages: backbone_lib.Stages) -> Float[Array, 'b k']:
    """Logits of the entry 'token'."""
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
    self, images: Float[Array | np.ndarray, 'b h w 3'], *, train: bool = False
  ) -> backbone_lib.Stages:
    """Maps normalised images to the stages of the backbone."""
    return self.backbone(images, train=train)

  def __call__(
    self, images: Float[Array | np.ndarray, 'b h w 3'], *, train: bool = False
  ) -> Float32[Array, 'b k']:
    """Maps normalised images to logits."""
    inputs = self.head.backbone_inputs(self.backbone.channels)
    stages = self.backbone(images, train=train, **inputs)
    return self.head(stages).astype(jnp.float32)
