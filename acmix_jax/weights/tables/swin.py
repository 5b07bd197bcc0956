"""Names of the official Swin and Swin-ACmix, and of other libraries' Swins.

Sources: microsoft/Swin-Transformer models/swin_transformer.py; LeapLabTHU/ACmix
Swin-Transformer/models/swin_transformer_acmix.py. The Swins of timm and
torchvision hold the same arrays under other names; those of mmsegmentation and
mmdetection, since they have a Swin of their own, do but for the order of the
four pixels that are merged.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from acmix_jax.ops import shifted_windows
from acmix_jax.weights.tables.layouts import (
  Layout,
  conv,
  hybrid,
  layer,
  norm,
  renamed,
  same,
)

_TIMM = [
  (r'^head\.fc\.', 'head.'),
  # timm merges at the start of a stage, the source at the end of the last one.
  (r'^layers\.(\d)\.downsample\.', lambda m: _merging(int(m[1]) - 1)),
]
_TORCHVISION = [
  (r'^features\.0\.0\.', 'patch_embed.proj.'),
  (r'^features\.0\.2\.', 'patch_embed.norm.'),
  (
    r'^features\.([1357])\.(\d+)\.',
    lambda m: f'layers.{int(m[1]) // 2}.blocks.{m[2]}.',
  ),
  (r'^features\.([246])\.', lambda m: _merging(int(m[1]) // 2 - 1)),
  (r'\.mlp\.0\.', '.mlp.fc1.'),
  (r'\.mlp\.3\.', '.mlp.fc2.'),
]
_OPENMMLAB = [
  (r'^backbone\.patch_embed\.projection\.', 'backbone.patch_embed.proj.'),
  (r'^backbone\.stages\.', 'backbone.layers.'),
  (r'\.attn\.w_msa\.', '.attn.'),
  (r'\.ffn\.layers\.0\.0\.', '.mlp.fc1.'),
  (r'\.ffn\.layers\.1\.', '.mlp.fc2.'),
]


def official_names(state_dict: Mapping[str, Any]) -> dict[str, Any]:
  """Renames the entries of another library's Swin, if it is one."""
  rules = []
  if 'head.fc.weight' in state_dict:
    rules = _TIMM
  elif 'features.0.0.weight' in state_dict:
    rules = _TORCHVISION
  elif 'backbone.patch_embed.projection.weight' in state_dict:
    rules = _OPENMMLAB
    state_dict = {
      name: _official_order(x) if '.downsample.' in name else x
      for name, x in state_dict.items()
    }
  return renamed(state_dict, rules)


def _official_order(x: np.ndarray) -> np.ndarray:
  """[..., c * 4], pixels in rows -> [..., 4 * c], down, then right."""
  pixels = x.reshape(*x.shape[:-1], -1, 4)[..., (0, 2, 1, 3)]
  return pixels.swapaxes(-1, -2).reshape(x.shape)


def _merging(stage: int) -> str:
  return f'layers.{stage}.downsample.'


def _window(biases):
  """Side of a window by its biases [(2 * side - 1)^2, heads]."""
  return (math.isqrt(len(biases)) + 1) // 2


def _index(biases):
  """The entry of the biases that each query (first) and key share."""
  side = _window(biases)
  row, column = np.divmod(np.arange(side**2), side)
  dy, dx = (x[:, None] - x + side - 1 for x in (row, column))
  return dy * (2 * side - 1) + dx


def _mask(biases, windows):
  """-100 for each window's pairs that the shift brought together, else 0."""
  side = _window(biases)
  size = windows * side
  regions = shifted_windows.shift_regions(size, size, side, side // 2)
  regions = regions.reshape(windows, side, windows, side).swapaxes(1, 2)
  regions = regions.reshape(windows**2, side**2)
  return np.float32(-100) * (regions[:, :, None] != regions[:, None])


def _stage(number: int) -> list:
  """Rows of our stage `number`, which is the source's `number` - 1."""
  stage = f'backbone/stage{number}_'
  block = stage + r'(\d+)/'
  # Attention alone has the names of ACmix's attention path.
  attention = block + r'operator/(?:attention/)?'
  official = rf'layers.{number - 1}.blocks.\1.'
  bias = official + 'attn.relative_position_bias_table'
  index = official + 'attn.relative_position_index'
  merging = _merging(number - 2)
  return [
    *norm(stage + 'merge/norm', merging + 'norm'),
    *layer(stage + 'merge/dense', merging + 'reduction'),
    *norm(stage + 'norm', f'norm{number - 1}'),  # Of the dense variant.
    *norm(block + r'norm(\d)', official + r'norm\2'),
    *layer(block + r'mlp/fc(\d)', official + r'mlp.fc\2'),
    *hybrid(block + 'operator', official + 'attn'),
    *layer(attention + 'query_key_value', official + 'attn.qkv'),
    *layer(attention + 'out', official + 'attn.proj'),
    (f'params/{attention}bias', bias, same),
    (f'params/{attention}bias', index, Layout(_index)),
  ]


def _masks(number: int) -> list:
  """Rows of the masks of a stage's shifted blocks.

  Of the size of the images that a classifier is published for: the first stage
  has eight windows along a side.
  """
  windows = 2 ** (4 - number)
  block = rf'backbone/stage{number}_(\d*[13579])/operator/(?:attention/)?'
  official = rf'layers.{number - 1}.blocks.\1.attn_mask'
  masks = Layout(functools.partial(_mask, windows=windows))
  return [(f'params/{block}bias', official, masks)]


TABLE = [
  *layer('backbone/stage1_embed/conv', 'patch_embed.proj', conv),
  *norm('backbone/stage1_embed/norm', 'patch_embed.norm'),
  *[row for number in range(1, 5) for row in _stage(number)],
  *norm('head/norm', 'norm'),
  *layer('head/dense', 'head'),
]
# What classifiers have besides, which know the size of their images.
MASKS = [row for number in range(1, 4) for row in _masks(number)]
