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
  """

  q: jax.Array
  k: jax.Array
  v: jax.Array
  context: Any = None


class Attention(nn.Module):
  """Base of the attentions: stage I, then stage II (paper section 3).

  A subclass makes its submodules in `setup` and defines the two stages;
  `acmix.Mix` then works on it:

    project(x, *context) -> Projections: 1x1 projections, the costly half.
    aggregate(projections) -> [b, h, w, n * d]: gathers values by similarity.
  """

  def __call__(self, x: jax.Array, *context: Any) -> jax.Array:
    """The attention alone, without the convolution path."""
    return self.aggregate(self.project(x, *context))
