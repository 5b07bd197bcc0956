"""Names of the official SAN with patchwise attention.

Source: hszhao/SAN model/san.py. SAN-ACmix has no official weights; its own
parameters take the names they have in the official ACmix-ResNet.
"""

from acmix_jax.weights.tables.layouts import dense, layer, mix, norm, same

_BLOCK = r'stage(\d)_(\d+)/'
# Attention alone has the names of ACmix's attention path.
_MIX = _BLOCK + r'mix/(?:attention/)?'
_LAYER = r'layer\1.\2.'
_WEIGHTS = _LAYER + 'sam.conv_w.'

TABLE = [
  *layer('stem_conv', 'conv_in'),
  *norm('stem_norm', 'bn_in'),
  *layer(r'conv(\d)', r'conv\1'),
  *norm(r'norm(\d)', r'bn\1'),
  *norm(_BLOCK + r'norm(\d)', _LAYER + r'bn\3'),
  *layer(_BLOCK + 'dense', _LAYER + 'conv'),
  *mix(_BLOCK + 'mix', _LAYER + 'sam'),
  *layer(_MIX + 'query', _LAYER + 'sam.conv1'),
  *layer(_MIX + 'key', _LAYER + 'sam.conv2'),
  *layer(_MIX + 'value', _LAYER + 'sam.conv3'),
  *norm(_MIX + 'norm1', _WEIGHTS + '0'),
  (f'params/{_MIX}kernel1', _WEIGHTS + '2.weight', dense),
  *norm(_MIX + 'norm2', _WEIGHTS + '3'),
  (f'params/{_MIX}kernel2', _WEIGHTS + '5.weight', dense),
  (f'params/{_MIX}bias2', _WEIGHTS + '5.bias', same),
  *layer('head', 'fc'),
]
