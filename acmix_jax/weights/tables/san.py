"""Names of the official SAN with patchwise attention.

Source: hszhao/SAN model/san.py. SAN-ACmix has no official weights; its own
parameters take the names they have in the official ACmix-ResNet.
"""

from acmix_jax.weights.tables.layouts import (
  hybrid,
  layer,
  norm,
  pointwise,
  same,
)


def _blocks(ours: str, number: int) -> list:
  """Rows of the blocks of a stage, the official one of that number."""
  block, official = rf'backbone/{ours}_(\d+)/', rf'layer{number}.\1.'
  # Attention alone has the names of ACmix's attention path.
  attention = block + r'operator/(?:attention/)?'
  weights = official + 'sam.conv_w.'
  return [
    *norm(block + r'norm(\d)', official + r'bn\2'),
    *layer(block + 'dense', official + 'conv', pointwise),
    *hybrid(block + 'operator', official + 'sam'),
    *layer(attention + 'query', official + 'sam.conv1', pointwise),
    *layer(attention + 'key', official + 'sam.conv2', pointwise),
    *layer(attention + 'value', official + 'sam.conv3', pointwise),
    *norm(attention + 'norm1', weights + '0'),
    (f'params/{attention}kernel1', weights + '2.weight', pointwise),
    *norm(attention + 'norm2', weights + '3'),
    (f'params/{attention}kernel2', weights + '5.weight', pointwise),
    (f'params/{attention}bias2', weights + '5.bias', same),
  ]


TABLE = [
  *layer('backbone/stem_conv1', 'conv_in', pointwise),
  *norm('backbone/stem_norm1', 'bn_in'),
  *layer('backbone/stem_conv2', 'conv0', pointwise),
  *_blocks('stem', 0),
  *norm('backbone/stem_norm2', 'bn0'),
  *layer(r'backbone/stage(\d)_conv', r'conv\1', pointwise),
  *[row for number in range(1, 5) for row in _blocks(f'stage{number}', number)],
  *norm(r'backbone/stage(\d)_norm', r'bn\1'),
  *layer('head/dense', 'fc'),
]
