"""Names of the official PVT, and of mmdetection's.

Sources: whai362/PVT classification/pvt.py; mmdetection 2.28
mmdet/models/backbones/pvt.py, whose queries, keys and values are one array.
PVT-ACmix has no official weights; its own parameters take the names they have
in the official Swin-ACmix.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

from acmix_jax.weights.tables.layouts import (
  Layout,
  conv,
  hybrid,
  layer,
  norm,
  renamed,
)

_STAGE = r'backbone/stage(\d)_'
_BLOCK = _STAGE + r'(\d+)/'
# Attention alone has the names of ACmix's attention path.
_ATTENTION = _BLOCK + r'operator/(?:attention/)?'
_OFFICIAL = r'block\1.\2.'

# Of mmdetection's stages: the embedding, then a list that the position table is
# the first of.
_LAYER = r'^backbone\.layers\.(\d)\.'
_MMDETECTION = [
  (_LAYER + r'0\.projection', lambda m: f'{_part("patch_embed", m)}.proj'),
  (_LAYER + r'0\.norm', lambda m: f'{_part("patch_embed", m)}.norm'),
  (_LAYER + r'1\.0\.pos_embed', lambda m: _part('pos_embed', m)),
  (
    _LAYER + r'1\.(\d+)',
    lambda m: f'{_part("block", m)}.{int(m[2]) - 1}',
  ),
  (r'\.attn\.attn\.out_proj\.', '.attn.proj.'),
  (r'\.ffn\.layers\.0\.', '.mlp.fc1.'),
  (r'\.ffn\.layers\.3\.', '.mlp.fc2.'),
]
_IN_PROJECTION = '.attn.attn.in_proj_'


def _part(name: str, stage: re.Match) -> str:
  return f'backbone.{name}{int(stage[1]) + 1}'


def official_names(state_dict: Mapping[str, Any]) -> dict[str, Any]:
  """Renames the entries of mmdetection's PVT, if it is that one."""
  if 'backbone.layers.0.0.projection.weight' not in state_dict:
    return dict(state_dict)
  entries = {}
  for name, x in state_dict.items():
    if _IN_PROJECTION in name:
      channels = len(x) // 3
      entries[name.replace(_IN_PROJECTION, '.attn.q.')] = x[:channels]
      entries[name.replace(_IN_PROJECTION, '.attn.kv.')] = x[channels:]
    else:
      entries[name] = x
  return renamed(entries, _MMDETECTION)


def _grid(x, shape):
  """[1, side^2, c], perhaps after a class token -> [side, side, c]."""
  del shape
  # The source has square grids alone, and does not store their side.
  side = math.isqrt(x.shape[1])
  tokens = x.shape[1] - side**2
  return x[0, tokens:].reshape(side, side, -1) if tokens in (0, 1) else x


def _first(x, shape):
  """[1, n, c] -> [c] of the class token."""
  del shape
  return x[0, 0]


_TOKEN = Layout(lambda x: x[None, None], _first)
_GRID = Layout(lambda x: x.reshape(1, -1, x.shape[-1]), _grid)

TABLE = [
  *layer(_STAGE + 'embed/conv', r'patch_embed\1.proj', conv),
  *norm(_STAGE + 'embed/norm', r'patch_embed\1.norm'),
  *norm(_BLOCK + r'norm(\d)', _OFFICIAL + r'norm\3'),
  *layer(_BLOCK + r'mlp/fc(\d)', _OFFICIAL + r'mlp.fc\3'),
  *hybrid(_BLOCK + 'operator', _OFFICIAL + 'attn'),
  *layer(_ATTENTION + 'query', _OFFICIAL + 'attn.q'),
  *layer(_ATTENTION + 'key_value', _OFFICIAL + 'attn.kv'),
  *layer(_ATTENTION + 'out', _OFFICIAL + 'attn.proj'),
  *layer(_ATTENTION + 'reduce', _OFFICIAL + 'attn.sr', conv),
  *norm(_ATTENTION + 'reduce_norm', _OFFICIAL + 'attn.norm'),
  # The class token comes first.
  (f'params/{_STAGE}token_position', r'pos_embed\1', _TOKEN),
  ('params/head/token', 'cls_token', _TOKEN),
  ('params/head/token_position', 'pos_embed4', _TOKEN),
  (f'params/{_STAGE}position', r'pos_embed\1', _GRID),
  *norm('head/norm', 'norm'),
  *layer('head/dense', 'head'),
]
