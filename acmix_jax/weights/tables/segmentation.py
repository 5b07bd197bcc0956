"""Names of mmsegmentation's necks and heads.

PVT's and Swin's segmentation code are mmsegmentation's. The neck's names are
mmdetection's, too, where the first convolution beyond the three maps of
RetinaNet is number 3.
"""

from acmix_jax.weights.tables.layouts import conv, layer, norm


def _conv_norm(ours: str, official: str) -> list:
  """Rows of a `ConvNormRelu`."""
  return [
    *layer(f'{ours}/conv', f'{official}.conv', conv),
    *norm(f'{ours}/norm', f'{official}.bn'),
  ]


_LEVELS = 'decode_head.scale_heads'

NECK = [
  *layer(r'neck/lateral(\d)', r'neck.lateral_convs.\1.conv', conv),
  *layer(r'neck/output(\d)', r'neck.fpn_convs.\1.conv', conv),
  *layer('neck/extra0', 'neck.fpn_convs.3.conv', conv),
  *layer('neck/extra1', 'neck.fpn_convs.4.conv', conv),
]
TABLE = [
  *NECK,
  # Between two convolutions the source has a layer that doubles the map.
  *_conv_norm(r'head/level(\d)_0', rf'{_LEVELS}.\1.0'),
  *_conv_norm(r'head/level(\d)_1', rf'{_LEVELS}.\1.2'),
  *_conv_norm(r'head/level(\d)_2', rf'{_LEVELS}.\1.4'),
  *_conv_norm(r'head/pooling/grid(\d)', r'decode_head.psp_modules.\1.1'),
  *_conv_norm('head/pooling/bottleneck', 'decode_head.bottleneck'),
  *_conv_norm(r'head/lateral(\d)', r'decode_head.lateral_convs.\1'),
  *_conv_norm(r'head/output(\d)', r'decode_head.fpn_convs.\1'),
  *_conv_norm('head/fusion', 'decode_head.fpn_bottleneck'),
  *layer('head/classifier', 'decode_head.conv_seg', conv),
  *_conv_norm('auxiliary/conv', 'auxiliary_head.convs.0'),
  *layer('auxiliary/classifier', 'auxiliary_head.conv_seg', conv),
]
