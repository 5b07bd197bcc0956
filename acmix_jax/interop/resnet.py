"""Names of torchvision's ResNet and of the official ACmix-ResNet.

Sources: torchvision.models.resnet; LeapLabTHU/ACmix ResNet/ResNet_ImageNet.py
and ResNet/test_bottleneck.py.
"""

from acmix_jax.interop.layouts import conv, dense, same, scalar

_BLOCK = r'params/stage(\d+)_(\d+)/'
# Attention alone has the names of ACmix's attention path.
_MIX = _BLOCK + r'mix/(?:attention/)?'
_LAYER = r'layer\1.\2.'
_PROJECTIONS = {
  'query': 'conv1',
  'key': 'conv2',
  'value': 'conv3',
  'position': 'conv_p',
}


def _norm(ours: str, official: str) -> list:
  return [
    (f'params/{ours}/scale', f'{official}.weight', same),
    (f'params/{ours}/bias', f'{official}.bias', same),
    (f'batch_stats/{ours}/mean', f'{official}.running_mean', same),
    (f'batch_stats/{ours}/var', f'{official}.running_var', same),
  ]


TABLE = [
  ('params/stem_conv/kernel', 'conv1.weight', conv),
  *_norm('stem_norm', 'bn1'),
  *_norm(r'stage(\d+)_(\d+)/norm(\d)', r'layer\1.\2.bn\3'),
  *_norm(r'stage(\d+)_(\d+)/shortcut_norm', _LAYER + 'downsample.1'),
  (_BLOCK + 'shortcut_conv/kernel', _LAYER + 'downsample.0.weight', conv),
  (_BLOCK + r'conv(\d)/kernel', _LAYER + r'conv\3.weight', conv),
  (_BLOCK + 'mix/alpha', _LAYER + 'conv2.rate1', scalar),
  (_BLOCK + 'mix/beta', _LAYER + 'conv2.rate2', scalar),
  (_BLOCK + 'mix/mixing', _LAYER + 'conv2.fc.weight', dense),
  (_BLOCK + 'mix/shifts', _LAYER + 'conv2.dep_conv.weight', conv),
  (_BLOCK + 'mix/kernel', _LAYER + 'conv2.weight', conv),
  *[
    row
    for ours, official in _PROJECTIONS.items()
    for row in (
      (_MIX + f'{ours}/kernel', _LAYER + f'conv2.{official}.weight', dense),
      (_MIX + f'{ours}/bias', _LAYER + f'conv2.{official}.bias', same),
    )
  ],
  ('params/head/kernel', 'fc.weight', dense),
  ('params/head/bias', 'fc.bias', same),
]
