"""RetinaNet's head: classes and boxes of the anchors of each level."""

import math
from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from acmix_jax.nn.heads import dense

# Of a new classifier, every probability is this: most anchors are background.
_PRIOR = 0.01


class RetinaHead(nn.Module):
  """Two towers of 3x3 convolutions that all levels share.

  Source: Lin et al., "Focal Loss for Dense Object Detection", section 4; the
  order of the anchors and the start values are those of mmdetection's
  RetinaHead.

  Attributes:
    num_classes: Classes, each with a logit of its own; background has none.
    num_anchors: Anchors of a cell.
    features: Channels of the towers.
    depth: Convolutions of each tower before the outputs.
    dtype: Computation dtype.
    param_dtype: Parameter dtype.
  """

  num_classes: int
  num_anchors: int = 9
  features: int = 256
  depth: int = 4
  dtype: DTypeLike = jnp.float32
  param_dtype: DTypeLike = jnp.float32

  def setup(self):
    dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)

    def tower(name):
      return [
        dense.conv(self.features, 3, **dtypes, name=f'{name}_conv{i}')
        for i in range(self.depth)
      ]

    self.class_tower = tower('class')
    self.box_tower = tower('box')
    self.classes = dense.conv(
      self.num_anchors * self.num_classes,
      3,
      bias_init=nn.initializers.constant(math.log(_PRIOR / (1 - _PRIOR))),
      **dtypes,
    )
    self.boxes = dense.conv(self.num_anchors * 4, 3, **dtypes)

  def __call__(
    self, maps: Sequence[Float[Array, 'b _h _w c']]
  ) -> tuple[list[Float[Array, 'b _n k']], list[Float[Array, 'b _n 4']]]:
    """Maps a pyramid to outputs of its anchors.

    Args:
      maps: Maps of the levels.

    Returns:
      By level, logits of the classes and deltas of the boxes; anchors in the
      order row, column, anchor of the cell.
    """
    logits = [
      dense.by_anchor(self.classes(x), self.num_classes)
      for x in dense.apply_tower(self.class_tower, maps)
    ]
    deltas = [
      dense.by_anchor(self.boxes(x), 4)
      for x in dense.apply_tower(self.box_tower, maps)
    ]
    return logits, deltas
