"""Names of the official PVT.

Source: whai362/PVT classification/pvt.py. PVT-ACmix has no official weights;
its own parameters take the names they have in the official Swin-ACmix.
"""

import math

from acmix_jax.weights.tables.layouts import (
  Layout,
  conv,
  hybrid,
  layer,
  norm,
)

_STAGE = r'backbone/stage(\d)_'
_BLOCK = _STAGE + r'(\d+)/'
# Attention alone has the names of ACmix's attention path.
_ATTENTION = _BLOCK + r'operator/(?:attention/)?'
_OFFICIAL = r'block\1.\2.'


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
