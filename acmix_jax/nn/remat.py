"""What is kept of blocks for their gradients."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax import linen as nn
from jaxtyping import Array, Float

# What `apply_blocks` keeps of a block for its gradient.
REMATS = ('none', 'products', 'block')


def apply_blocks(
  model: nn.Module,
  get_blocks: Callable[[nn.Module], Sequence[nn.Module]],
  x: Float[Array, 'b *pixels c'],
  **context: Any,
) -> Float[Array, 'b *outputs f']:
  """Applies blocks in turn; `model.remat` says what their gradients find.

  'none': all that they need. 'products': the results of dense layers and
  convolutions; norms, activations and what attention makes of its projections
  are computed again. 'block': the input of each block alone.

  Args:
    model: Module with a field `remat` and the blocks.
    get_blocks: Function from the model to the blocks, each a module that maps
      (x, **context) to an array.
    x: Input of the first block.
    **context: Static values.
  """
  for i in range(len(get_blocks(model))):

    def apply(model, x, i=i):
      return get_blocks(model)[i](x, **context)

    # The model is lifted, not the block: flax loses the scopes that the layers
    # of a bound block share.
    if model.remat != 'none':
      policy = _is_product if model.remat == 'products' else None
      apply = nn.remat(apply, policy=policy)
    x = apply(model, x)
  return x


def _is_product(primitive, *args, **params):
  """Policy of `jax.checkpoint`: products of which one factor is shared."""
  if primitive.name == 'conv_general_dilated':
    return params['feature_group_count'] == 1
  dots = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
  return dots(primitive, *args, **params)
