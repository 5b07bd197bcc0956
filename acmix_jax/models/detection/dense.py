"""What dense heads say about the anchors of a canvas."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int

from acmix_jax.ops import anchors as anchor_ops
from acmix_jax.ops import boxes as box_ops


class Outputs(NamedTuple):
  """Outputs of a dense head, by level.

  Attributes:
    logits: Logits of each anchor.
    deltas: Deltas of each anchor's box.
    anchors: Shapes of the anchors.
    sizes: Height and width of each map, in cells.
  """

  logits: Sequence[Float[Array, 'b _n k']]
  deltas: Sequence[Float[Array, 'b _n 4']]
  anchors: anchor_ops.Anchors
  sizes: Sequence[tuple[int, int]]

  @property
  def boxes(self) -> list[Float32[Array, '_n 4']]:
    """The anchors of each level."""
    return anchor_ops.on_maps(self.anchors, self.sizes)

  def by_level(self, x: Array) -> list[Array]:
    """Splits an array [b, anchors of all levels, ...]."""
    ends, end = [], 0
    for deltas in self.deltas[:-1]:
      end += deltas.shape[1]
      ends.append(end)
    return jnp.split(x, ends, axis=1)


def detached(outputs: Outputs) -> Outputs:
  """Outputs that pass no gradient on."""
  logits, deltas = jax.lax.stop_gradient((outputs.logits, outputs.deltas))
  return outputs._replace(logits=logits, deltas=deltas)


def decoded(
  anchors: Float[Array, 'n 4'],
  deltas: Float[Array, 'b n 4'],
  index: Int[Array, 'b m'],
  sizes: Int[Array, 'b 2'],
) -> Float32[Array, 'b m 4']:
  """Boxes of some anchors of a level, clipped to the images.

  Args:
    anchors: All anchors of the level.
    deltas: Their deltas.
    index: The anchors wanted.
    sizes: Valid height and width of each image.
  """
  return box_ops.decode(
    anchors[index], take(deltas, index), size=sizes[:, None]
  )


def take(x: Array, index: Int[Array, 'b m']) -> Array:
  """Rows `index` of the second axis of x [b, n, ...]."""
  return jax.vmap(lambda x, index: x[index])(x, index)
