"""Names of mmdetection's necks and heads; Swin's and PVT's detectors use them.

Source: mmdetection 2.11 to 2.28.
"""

import numpy as np

from acmix_jax.weights.tables.layouts import (
  Layout,
  conv,
  dense,
  layer,
  norm,
  pointwise,
  same,
)
from acmix_jax.weights.tables.segmentation import NECK


def _from_pooled(x, shape):
  if len(shape) == 2:
    return dense.to_ours(x, shape)
  h, w, channels, _ = shape
  return x.reshape(-1, channels, h, w).transpose(2, 3, 1, 0)


def _to_pooled(x):
  if x.ndim == 2:
    return dense.to_official(x)
  return x.transpose(3, 2, 0, 1).reshape(x.shape[3], -1)


# [out, in * h * w] -> [h, w, in, out]; matrices as `dense`.
_POOLED = Layout(_to_pooled, _from_pooled)
# [in, out, 2, 2] of a transposed convolution -> [2, 2, in, out].
_UPSAMPLE = Layout(
  lambda x: x.transpose(2, 3, 0, 1), lambda x, shape: x.transpose(2, 3, 0, 1)
)


def _region_heads(stage: str, official: str) -> list:
  """Rows of the heads of a stage.

  Args:
    stage: Pattern of its number in our names.
    official: What stands before a name in the official box and mask heads: the
      number of the stage in a cascade.
  """
  box, mask = f'box_heads_{stage}/', f'mask_heads_{stage}/'
  # Within a cascade the stage's number is the first group.
  number = r'\2' if official else r'\1'
  box_head = f'roi_head.bbox_head.{official}'
  mask_head = f'roi_head.mask_head.{official}'
  convs = box_head + f'shared_convs.{number}.'
  logits = mask_head + 'conv_logits'
  return [
    *layer(box + r'conv(\d)', convs + 'conv', conv),
    *norm(box + r'norm(\d)', convs + 'bn'),
    *layer(box + r'dense(\d)', f'{box_head}shared_fcs.{number}', _POOLED),
    *layer(box + 'classes', box_head + 'fc_cls'),
    *layer(box + 'boxes', box_head + 'fc_reg'),
    *layer(mask + r'conv(\d)', f'{mask_head}convs.{number}.conv', conv),
    *layer(mask + 'upsample', mask_head + 'upsample', _UPSAMPLE),
    (f'params/{mask}classes_kernel', logits + '.weight', pointwise),
    (f'params/{mask}classes_bias', logits + '.bias', same),
  ]


# The position of a class token, which PVT's detectors keep in front of the
# others and do not use.
_TOKEN = (
  r'params/backbone/stage4_position',
  'backbone.pos_embed4',
  Layout(lambda x: np.zeros((1, 1, x.shape[-1]), x.dtype)),
)

RETINANET = [
  _TOKEN,
  *NECK,
  *layer(r'head/class_conv(\d)', r'bbox_head.cls_convs.\1.conv', conv),
  *layer(r'head/box_conv(\d)', r'bbox_head.reg_convs.\1.conv', conv),
  *layer('head/classes', 'bbox_head.retina_cls', conv),
  *layer('head/boxes', 'bbox_head.retina_reg', conv),
]
_RPN = [
  _TOKEN,
  *NECK,
  *layer('rpn/conv', 'rpn_head.rpn_conv', conv),
  *layer('rpn/objectness', 'rpn_head.rpn_cls', conv),
  *layer('rpn/boxes', 'rpn_head.rpn_reg', conv),
]
MASK_RCNN = [*_RPN, *_region_heads('0', '')]
CASCADE = [*_RPN, *_region_heads(r'(\d)', r'\1.')]
