"""The region proposal network's head."""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from acmix_jax.nn.heads import dense


class RPNHead(nn.Module):
  """A 3x3 convolution, then an object's logit and box of each anchor.

  Source: Ren et al., "Faster R-CNN", section 3.1; the order of the anchors and
  the start values are those of mmdetection's RPNHead.

  Attributes:
    num_anchors: Anchors of a cell.
    features: Channels of the convolution.
    dtype: Computation dtype.
    param_dtype: Parameter dtype.
  """

  num_anchors: int = 3
  features: int = 256
  dtype: DTypeLike = jnp.float32
  param_dtype: DTypeLike = jnp.float32

  def setup(self):
    dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    self.conv = dense.conv(self.features, 3, **dtypes)
    self.objectness = dense.conv(self.num_anchors, 1, **dtypes)
    self.boxes = dense.conv(self.num_anchors * 4, 1, **dtypes)

  def __call__(
    self, maps: Sequence[Float[Array, 'b _h _w c']]
  ) -> tuple[list[Float[Array, 'b _n 1']], list[Float[Array, 'b _n 4']]]:
    """Maps a pyramid to outputs of its anchors.

    Args:
      maps: Maps of the levels.

    Returns:
      By level, logits of an object and deltas of the boxes; anchors in the
      order row, column, anchor of the cell.
    """
    maps = dense.apply_tower([self.conv], maps)
    logits = [dense.by_anchor(self.objectness(x), 1) for x in maps]
    deltas = [dense.by_anchor(self.boxes(x), 4) for x in maps]
    return logits, deltas
