"""Work of torchvision, the peer of our detectors, for `torch_peers`.

Its RetinaNet and Mask R-CNN have the heads, anchors, samples and frozen layers
of ours, and as ours norms that learn scale and bias, over running statistics:
torchvision alone would freeze these, too. They differ in that RoIAlign takes
four samples a bin and that 2,000 proposals are kept, not 1,000. Masks are
computed for the regions on objects alone, which are few before anything is
learnt: proposals around the objects are added, so that they are a quarter of
all regions, as many as ours always has.
"""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional
from torchvision import ops
from torchvision.models import detection
from torchvision.models.detection import backbone_utils
from torchvision.ops import feature_pyramid_network


def nms(o) -> Callable[[], None]:
  """NMS of boxes of one class."""
  boxes, scores = (
    torch.tensor(x, dtype=torch.float32, device=o.device)
    for x in (o.boxes, o.scores)
  )
  return lambda: ops.nms(boxes, scores, o.threshold)


def roi_align(o, gradient: bool = False) -> Callable[[], None]:
  """RoIAlign, on each level for its boxes."""
  boxes = torch.tensor(o.boxes, dtype=torch.float32, device=o.device)
  dtype = getattr(torch, o.dtype)
  maps = [
    torch.randn(shape, device=o.device, dtype=dtype, requires_grad=gradient)
    for shape in o.shapes
  ]

  def step():
    sides = (boxes[:, 2:] - boxes[:, :2]).prod(1).sqrt()
    level = torch.log2(sides / o.finest_side + 1e-6).floor()
    level = level.clamp(0, len(maps) - 1)
    rois = functional.pad(boxes, (1, 0))
    out = boxes.new_zeros(len(boxes), maps[0].shape[1], *[o.output_size] * 2)
    for i, (x, stride) in enumerate(zip(maps, o.strides, strict=True)):
      here = (level == i).nonzero().squeeze(1)
      out[here] = ops.roi_align(
        x, rois[here], o.output_size, 1 / stride, 0, aligned=True
      )
    if gradient:
      torch.autograd.grad(out, maps, torch.ones_like(out))

  return step


def roi_align_gradient(o) -> Callable[[], None]:
  """The same with the gradient of the maps."""
  return roi_align(o, gradient=True)


def on_batch(o) -> tuple[nn.Module, Callable[[], torch.Tensor]]:
  """A detector, and its loss of one batch of noise."""
  if o.backbone != 'resnet50':
    raise KeyError(f'torchvision has no detector of {o.backbone}')
  make = {'retinanet': _retinanet, 'mask_rcnn': _mask_rcnn}.get(o.model)
  if make is None:
    raise KeyError(f'torchvision has no {o.model}')
  height, width = o.image_size
  net = make(o, min_size=min(height, width), max_size=max(height, width))
  net = net.to(o.device).train()
  images = [
    torch.rand(3, height, width, device=o.device) for _ in range(o.batch)
  ]
  targets = [_target(boxes, o) for boxes in o.objects]
  if o.model == 'mask_rcnn':
    near = [_around(target['boxes']) for target in targets]
    net.rpn.register_forward_hook(
      lambda _, __, output: (
        [torch.cat(pair) for pair in zip(output[0], near, strict=True)],
        output[1],
      )
    )
  return net, lambda: sum(net(images, targets).values())


def _target(boxes, o) -> dict[str, torch.Tensor]:
  """Objects that fill their boxes."""
  masks = torch.zeros(len(boxes), *o.image_size, dtype=torch.uint8)
  for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
    mask[int(y1) : int(y2) + 1, int(x1) : int(x2) + 1] = 1
  target = {
    'boxes': torch.tensor(boxes, dtype=torch.float32),
    'labels': torch.randint(1, o.num_classes + 1, (len(boxes),)),
    'masks': masks,
  }
  return {key: x.to(o.device) for key, x in target.items()}


def _around(boxes: torch.Tensor) -> torch.Tensor:
  """A hundred boxes around each of some boxes."""
  boxes = boxes.repeat(100, 1)
  sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
  return boxes + 0.03 * sides * torch.randn_like(boxes)


class _BatchNorm(nn.BatchNorm2d):
  """Batch norm whose statistics stay as they are, as mmdetection trains it."""

  def train(self, mode: bool = True) -> nn.Module:
    return super().train(False)


def _backbone(**fields) -> nn.Module:
  return backbone_utils.resnet_fpn_backbone(
    backbone_name='resnet50',
    weights=None,
    norm_layer=_BatchNorm,
    trainable_layers=3,
    **fields,
  )


def _mask_rcnn(o, **sizes) -> nn.Module:
  return detection.MaskRCNN(_backbone(), o.num_classes + 1, **sizes)


def _retinanet(o, **sizes) -> nn.Module:
  backbone = _backbone(
    returned_layers=[2, 3, 4],
    extra_blocks=feature_pyramid_network.LastLevelP6P7(2048, 256),
  )
  return detection.RetinaNet(backbone, o.num_classes + 1, **sizes)
