"""What every attention of the code base is: two stages in one module."""

from typing import Any

import jax
from flax import linen as nn
from flax import struct


@struct.dataclass
class Projections:
  """Stage I: what the two paths of stage II share.

  Attributes:
    q: query maps [b, h, w, m, d].
    k: key maps [b, h', w', m, d], on the grid of q or a coarser one.
    v: value maps [b, h', w', n, d]; n * d is the layer's output width.
    context: what the attention's own `aggregate` needs beside them.
    valid: bool [h, w] of numpy, False where a pixel is padding, whose q, k and
      v must be zero; None: all pixels are valid.
    stacked: q, k and v in one array [b, h, w, m + m + n, d], where they are
      slices of one: the convolution path then takes it whole.
  """

  q: jax.Array
  k: jax.Array
  v: jax.Array
  context: Any = None
  valid: Any = None
  stacked: jax.Array | None = None


class Attention(nn.Module):
  """Base of the attentions: stage I, then stage II (paper section 3).

  A subclass makes its submodules in `setup` and defines the two stages;
  `acmix.Mix` then works on it:

    project(x, *context) -> Projections: 1x1 projections, the costly half.
    aggregate(projections) -> [b, h, w, n * d]: gathers values by similarity.

  x is a map [b, h, w, c], or a sequence [b, t + h * w, c] whose first t tokens
  have no place in the map. Their queries, keys and values go to the context,
  not to the maps, and `aggregate` then gives a sequence, too.
  """

  def __call__(self, x: jax.Array, *context: Any) -> jax.Array:
    """The attention alone, without the convolution path."""
    return self.aggregate(self.project(x, *context))
