"""Names of the official PVT.

Source: whai362/PVT classification/pvt.py. PVT-ACmix has no official weights;
its own parameters take the names they have in the official Swin-ACmix.
"""

import numpy as np

from acmix_jax.weights.tables.layouts import conv, layer, mix, norm

_BLOCK = r'stage(\d)_(\d+)/'
# Attention alone has the names of ACmix's attention path.
_MIX = _BLOCK + r'mix/(?:attention/)?'
_OFFICIAL = r'block\1.\2.'


def _grid(x: np.ndarray) -> np.ndarray:
  """[1, n, c] of a square map, perhaps after a class token -> [s, s, c]."""
  side = int(x.shape[1] ** 0.5)
  return x[0, -side * side :].reshape(side, side, -1)


def _first(x: np.ndarray) -> np.ndarray:
  """[1, n, c] -> [c] of the class token."""
  return x[0, 0]


TABLE = [
  *layer(r'embed(\d)/conv', r'patch_embed\1.proj', conv),
  *norm(r'embed(\d)/norm', r'patch_embed\1.norm'),
  (r'params/position(\d)', r'pos_embed\1', _grid),
  ('params/token', 'cls_token', _first),
  ('params/token_position', 'pos_embed4', _first),
  *norm(_BLOCK + r'norm(\d)', _OFFICIAL + r'norm\3'),
  *layer(_BLOCK + r'dense(\d)', _OFFICIAL + r'mlp.fc\3'),
  *mix(_BLOCK + 'mix', _OFFICIAL + 'attn'),
  *layer(_MIX + 'query', _OFFICIAL + 'attn.q'),
  *layer(_MIX + 'key_value', _OFFICIAL + 'attn.kv'),
  *layer(_MIX + 'out', _OFFICIAL + 'attn.proj'),
  *layer(_MIX + 'reduce', _OFFICIAL + 'attn.sr', conv),
  *norm(_MIX + 'reduce_norm', _OFFICIAL + 'attn.norm'),
  *norm('norm', 'norm'),
  *layer('head', 'head'),
]
