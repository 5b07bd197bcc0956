"""What all backbones have in common."""

import fnmatch

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from acmix_jax.nn import checks, remat

# Maps by stage, 'stage1', 'stage2', ...; a class token [b, c] is an entry, too.
Stages = dict[str, Float[Array, 'b *_pixels _c']]


class Backbone(nn.Module, kw_only=True):
  """Base of the backbones: normalised images to maps of several stages.

    backbone(images, train=False)  # {'stage1': [b, h/4, w/4, c], ...}

  A subclass names its modules and parameters by stage: stem_*, stage1_*, ...,
  the blocks of a stage stage1_0, stage1_1, ...

  Attributes:
    stage_sizes: Blocks of each stage.
    operator: Operator of the blocks, one of `acmix.OPERATORS`.
    block_operators: Other operators of some blocks: pairs of a shell-style
      pattern of the blocks' names and an operator, the first that matches, such
      as (('stage1_*', 'attention'), ('stage2_0', 'shift_convolution')).
    frozen_stages: Number of first stages, with the stem, that get no gradient
      and run as in evaluation; 0: all train, the stem too.
    dtype: Computation dtype.
    param_dtype: Parameter dtype.
    remat: What is kept of a block for its gradient; see `remat.apply_blocks`.
  """

  stage_sizes: tuple[int, ...]
  operator: str = 'attention'
  block_operators: tuple[tuple[str, str], ...] = ()
  frozen_stages: int = 0
  dtype: DTypeLike = jnp.float32
  param_dtype: DTypeLike = jnp.float32
  remat: str = 'none'

  @property
  def strides(self) -> dict[str, int]:
    """Pixels of the image between pixels of each stage."""
    raise NotImplementedError

  @property
  def channels(self) -> dict[str, int]:
    """Channels of each stage."""
    raise NotImplementedError

  @property
  def side_multiple(self) -> int:
    """No pixel is dropped where both sides of an image are multiples of this.

    1: sides are rounded up, whatever they are.
    """
    return 1

  def frozen_parameters(self) -> str:
    """Regular expression of the whole names of frozen parameters, or ''.

    Names are relative to the backbone, as 'stage1_0/conv1/kernel'.
    """
    patterns = self._frozen_patterns()
    return f'({"|".join(patterns)})' if patterns else ''

  def _frozen_patterns(self) -> list[str]:
    if not self.frozen_stages:
      return []
    numbers = '|'.join(map(str, range(1, self.frozen_stages + 1)))
    return [f'(stem|stage({numbers}))_.*']

  @property
  def block_names(self) -> list[str]:
    """Names of the blocks, from the first to the last."""
    return [
      f'stage{stage}_{i}'
      for stage, size in enumerate(self.stage_sizes, start=1)
      for i in range(size)
    ]

  def operator_of(self, block: str) -> str:
    """Operator of the block of a name."""
    for pattern, operator in self.block_operators:
      if fnmatch.fnmatchcase(block, pattern):
        return operator
    return self.operator

  def _check_fields(self, *counts: str, **by_stage: tuple):
    """Raises ValueError for a value that cannot work.

    Args:
      *counts: Names of fields, besides the shared ones, that hold whole numbers
        from 1 up.
      **by_stage: Fields with one value for each stage.
    """
    name = type(self).__name__
    counts = ('stage_sizes', *counts)
    checks.check_counts(name, **{x: getattr(self, x) for x in counts})
    checks.check_choice(name, 'remat', self.remat, remat.REMATS)
    checks.check_stages(name, self.stage_sizes, **by_stage)
    if not 0 <= self.frozen_stages <= len(self.stage_sizes):
      raise ValueError(
        f'{name}: frozen_stages={self.frozen_stages}; 0 to '
        f'{len(self.stage_sizes)} are allowed, the number of its stages.'
      )
    for pair in self.block_operators:
      if isinstance(pair, str) or len(pair) != 2:
        raise ValueError(
          f'{name}: {pair!r} of block_operators is no pair; give pairs such as '
          "(('stage1_0', 'attention'),), with a comma behind a single one."
        )
      if not fnmatch.filter(self.block_names, pair[0]):
        raise ValueError(
          f'{name}: {pair[0]!r} of block_operators matches no block; there are '
          f'{", ".join(self.block_names)}.'
        )

  def _trains(self, stage: int, train: bool) -> bool:
    """Whether a stage (0: the stem) runs as in training."""
    return train and (stage > self.frozen_stages or not self.frozen_stages)

  def _apply_blocks(self, stage, x, **context):
    """Applies the blocks of a stage; `self.blocks` has them by stage."""
    return remat.apply_blocks(
      self, lambda model: model.blocks[stage - 1], x, **context
    )

  def _output(self, stage, x):
    """A stage's map, which passes no gradient on if the stage is frozen."""
    return jax.lax.stop_gradient(x) if stage <= self.frozen_stages else x

  def _by_stage(self, values) -> dict[str, int]:
    return {f'stage{i}': value for i, value in enumerate(values, start=1)}
