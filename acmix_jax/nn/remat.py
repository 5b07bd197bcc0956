"""What is kept of blocks for their gradients."""

from typing import Any

import jax
from flax import linen as nn

# What `apply_blocks` keeps of a block for its gradient.
REMATS = ('none', 'products', 'block')


def apply_blocks(
  model: nn.Module, blocks: str, x: jax.Array, *context: Any, train: bool
) -> jax.Array:
  """Applies blocks in turn; `model.remat` says what their gradients find.

  'none': all that they need. 'products': the results of dense layers and
  convolutions; norms, activations and what attention makes of its projections
  are computed again. 'block': the input of each block alone.

  Args:
    model: module with a field `remat` and the blocks.
    blocks: attribute of the model, a list of modules that map
      (x, *context, train=...) to an array.
    x: input of the first.
    *context: static.
    train: static.
  """
  for i in range(len(getattr(model, blocks))):

    def apply(model, x, i=i):
      return getattr(model, blocks)[i](x, *context, train=train)

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
