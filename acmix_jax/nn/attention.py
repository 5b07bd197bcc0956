"""What every attention of the code base is: two stages in one module."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from flax import linen as nn
from flax import struct
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Bool, Float


@struct.dataclass
class Projections:
  """Stage I: the projections that both paths of stage II share.

  An attention that needs more in stage II makes a subclass. Fields that are not
  arrays must be static there (`pytree_node=False`): a bool would become an
  array under `nn.remat`.

  Attributes:
    q: Query maps.
    k: Key maps, on the grid of q or a coarser one.
    v: Value maps, on the grid of k; n * d is the layer's output width.
  """

  q: Float[Array, 'b h w m d']
  k: Float[Array, 'b hk wk m d']
  v: Float[Array, 'b hk wk n d']


class ConvolutionMaps(NamedTuple):
  """The input of the convolution path.

  Attributes:
    maps: Maps of one or more grids; the first has the grid of the output.
    valid: False where a pixel is padding, whose maps must be zero; None: all
      pixels are valid.
  """

  maps: list[Float[Array, 'b _h _w _m d']]
  valid: Bool[np.ndarray, 'h w'] | None = None


class Convolution(NamedTuple):
  """The convolution path of ACmix, but for its maps.

  Attributes:
    make_weights: (number of maps, outputs) -> the weights of the fully
      connected layer and of the grouped convolution, and the bias of the
      former, or None. It makes the parameters: call it once.
    use_bias: Whether there is that bias.
    strides: Pixels between outputs.
    dilation: Pixels between neighbouring taps.
    implementation: Implementation of `ops.shift_convolution`.
    dtype: Computation dtype; None: that of the layer's input.
  """

  make_weights: Callable[[int, int], tuple[Array, Array, Array | None]]
  use_bias: bool
  strides: int
  dilation: int
  implementation: str
  dtype: DTypeLike | None


class Attention(nn.Module):
  """Base of the attentions: stage I, then stage II (paper section 3).

  A subclass makes its submodules in `setup` and defines the two stages;
  `acmix.Hybrid` then works on it:

    project(x, **context) -> Projections: 1x1 projections, the costly half.
    aggregate(projections) -> outputs: gathers values by similarity.

  x is a map [b, h, w, c], or a sequence [b, l, c] whose first l - h * w tokens
  have no place in the map. Their queries, keys and values are no part of the
  maps q, k and v, and `aggregate` then gives a sequence, too.
  """

  def __call__(
    self, x: Float[Array, 'b *pixels c'], **context: Any
  ) -> Float[Array, 'b *outputs f']:
    """The attention alone, without the convolution path."""
    return self.aggregate(self.project(x, **context))

  def convolution_maps(self, projections: Projections) -> ConvolutionMaps:
    """What the convolution path of ACmix takes: q, k and v as projected."""
    return ConvolutionMaps([projections.q, projections.k, projections.v])

  def sum_of_paths(
    self,
    x: Float[Array, 'b *pixels c'],
    convolution: Convolution,
    alpha: ArrayLike,
    beta: ArrayLike,
    **context: Any,
  ) -> Float[Array, 'b *outputs f'] | None:
    """All of ACmix by one operator; None: there is none."""
    del x, convolution, alpha, beta, context
