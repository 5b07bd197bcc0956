"""Segmentation heads written from torch.nn, the peers of ours in `torch_peers`.

They compute what mmsegmentation's FPN, FPNHead, UPerHead and FCNHead compute at
their full widths, and are given the maps [b, c, h, w] of an official backbone.
"""

import torch
from torch import nn
from torch.nn import functional


class ConvNorm(nn.Sequential):
  """Convolution, batch normalisation and ReLU."""

  def __init__(self, inputs: int, outputs: int, kernel: int):
    super().__init__(
      nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False),
      nn.BatchNorm2d(outputs),
      nn.ReLU(inplace=True),
    )


def resize(x: torch.Tensor, size: torch.Size) -> torch.Tensor:
  """Resizes maps bilinearly."""
  return functional.interpolate(x, size, mode='bilinear')


class Classes(nn.Sequential):
  """Dropout of whole channels and the logits."""

  def __init__(self, inputs: int, num_classes: int):
    super().__init__(nn.Dropout2d(0.1), nn.Conv2d(inputs, num_classes, 1))


class SemanticFPN(nn.Module):
  """FPN neck of 256 channels and FPNHead of 128."""

  def __init__(self, channels: list[int], num_classes: int):
    super().__init__()
    self.laterals = nn.ModuleList(nn.Conv2d(c, 256, 1) for c in channels)
    self.outputs = nn.ModuleList(
      nn.Conv2d(256, 256, 3, padding=1) for _ in channels
    )
    self.scales = nn.ModuleList()
    for level in range(len(channels)):
      layers = [ConvNorm(256, 128, 3)]
      for step in range(level):
        if step:
          layers.append(ConvNorm(128, 128, 3))
        layers.append(nn.Upsample(scale_factor=2, mode='bilinear'))
      self.scales.append(nn.Sequential(*layers))
    self.classes = Classes(128, num_classes)

  def forward(self, maps):
    """Logits at the size of the first map, in a list."""
    maps = [conv(x) for conv, x in zip(self.laterals, maps, strict=True)]
    for i in reversed(range(len(maps) - 1)):
      maps[i] = maps[i] + functional.interpolate(
        maps[i + 1], maps[i].shape[2:], mode='nearest'
      )
    maps = [conv(x) for conv, x in zip(self.outputs, maps, strict=True)]
    size = maps[0].shape[2:]
    maps = [scale(x) for scale, x in zip(self.scales, maps, strict=True)]
    return [self.classes(sum(resize(x, size) for x in maps))]


class UPerNet(nn.Module):
  """UPerHead of 512 channels, and the auxiliary FCNHead of 256."""

  def __init__(self, channels: list[int], num_classes: int):
    super().__init__()
    *finer, last = channels
    self.pools = nn.ModuleList(
      nn.Sequential(nn.AdaptiveAvgPool2d(bins), ConvNorm(last, 512, 1))
      for bins in (1, 2, 3, 6)
    )
    self.bottleneck = ConvNorm(last + 4 * 512, 512, 3)
    self.laterals = nn.ModuleList(ConvNorm(c, 512, 1) for c in finer)
    self.outputs = nn.ModuleList(ConvNorm(512, 512, 3) for _ in finer)
    self.fuse = ConvNorm(4 * 512, 512, 3)
    self.classes = Classes(512, num_classes)
    self.auxiliary = nn.Sequential(
      ConvNorm(channels[2], 256, 3), Classes(256, num_classes)
    )

  def forward(self, maps):
    """Logits at the size of the first map, and the auxiliary ones."""
    *finer, last = maps
    pooled = [resize(pool(last), last.shape[2:]) for pool in self.pools]
    sums = [conv(x) for conv, x in zip(self.laterals, finer, strict=True)]
    sums.append(self.bottleneck(torch.cat([last, *pooled], 1)))
    for i in reversed(range(3)):
      sums[i] = sums[i] + resize(sums[i + 1], sums[i].shape[2:])
    fused = [conv(x) for conv, x in zip(self.outputs, sums[:3], strict=True)]
    fused.append(sums[3])
    size = fused[0].shape[2:]
    fused = self.fuse(torch.cat([resize(x, size) for x in fused], 1))
    return [self.classes(fused), self.auxiliary(maps[2])]


class Segmenter(nn.Module):
  """A backbone with one of the heads."""

  def __init__(self, backbone: nn.Module, head: nn.Module):
    super().__init__()
    self.backbone = backbone
    self.head = head

  def forward(self, images):
    """Logits of the head, and of the auxiliary one where there is one."""
    return self.head(list(self.backbone(images)))


def objective(logits: list[torch.Tensor], labels: torch.Tensor):
  """Cross-entropy at the size of the labels [b, h, w]; 0.4 of the auxiliary."""
  losses = [
    functional.cross_entropy(resize(x, labels.shape[1:]), labels)
    for x in logits
  ]
  return losses[0] + 0.4 * sum(losses[1:])


HEADS = {'semantic_fpn': SemanticFPN, 'upernet': UPerNet}
