"""Names of torchvision's ResNet and of the official ACmix-ResNet.

Sources: torchvision.models.resnet; LeapLabTHU/ACmix ResNet/ResNet_ImageNet.py
and ResNet/test_bottleneck.py.
"""

from acmix_jax.weights.tables.layouts import (
  conv,
  hybrid,
  layer,
  norm,
  pointwise,
)

_BLOCK = r'backbone/stage(\d+)_(\d+)/'
# Attention alone has the names of ACmix's attention path.
_ATTENTION = _BLOCK + r'operator/(?:attention/)?'
_LAYER = r'layer\1.\2.'

TABLE = [
  ('params/backbone/stem_conv/kernel', 'conv1.weight', conv),
  *norm('backbone/stem_norm', 'bn1'),
  *norm(_BLOCK + r'norm(\d)', _LAYER + r'bn\3'),
  *norm(_BLOCK + 'shortcut_norm', _LAYER + 'downsample.1'),
  *layer(_BLOCK + 'shortcut_conv', _LAYER + 'downsample.0', conv),
  *layer(_BLOCK + r'conv(\d)', _LAYER + r'conv\3', conv),
  *hybrid(_BLOCK + 'operator', _LAYER + 'conv2'),
  *layer(_BLOCK + 'operator', _LAYER + 'conv2', conv),
  *layer(_ATTENTION + 'query', _LAYER + 'conv2.conv1', pointwise),
  *layer(_ATTENTION + 'key', _LAYER + 'conv2.conv2', pointwise),
  *layer(_ATTENTION + 'value', _LAYER + 'conv2.conv3', pointwise),
  *layer(_ATTENTION + 'position', _LAYER + 'conv2.conv_p', pointwise),
  *layer('head/dense', 'fc'),
]
