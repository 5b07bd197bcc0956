"""Names of torchvision's ResNet and of the official ACmix-ResNet.

Sources: torchvision.models.resnet; LeapLabTHU/ACmix ResNet/ResNet_ImageNet.py
and ResNet/test_bottleneck.py.
"""

from acmix_jax.weights.tables.layouts import conv, dense, layer, mix, norm

_BLOCK = r'stage(\d+)_(\d+)/'
# Attention alone has the names of ACmix's attention path.
_MIX = _BLOCK + r'mix/(?:attention/)?'
_LAYER = r'layer\1.\2.'

TABLE = [
  ('params/stem_conv/kernel', 'conv1.weight', conv),
  *norm('stem_norm', 'bn1'),
  *norm(_BLOCK + r'norm(\d)', _LAYER + r'bn\3'),
  *norm(_BLOCK + 'shortcut_norm', _LAYER + 'downsample.1'),
  *layer(_BLOCK + 'shortcut_conv', _LAYER + 'downsample.0', conv),
  *layer(_BLOCK + r'conv(\d)', _LAYER + r'conv\3', conv),
  *mix(_BLOCK + 'mix', _LAYER + 'conv2'),
  *layer(_BLOCK + 'mix', _LAYER + 'conv2', conv),
  *layer(_MIX + 'query', _LAYER + 'conv2.conv1'),
  *layer(_MIX + 'key', _LAYER + 'conv2.conv2'),
  *layer(_MIX + 'value', _LAYER + 'conv2.conv3'),
  *layer(_MIX + 'position', _LAYER + 'conv2.conv_p'),
  *layer('head', 'fc', dense),
]
