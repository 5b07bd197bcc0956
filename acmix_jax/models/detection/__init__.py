"""Detectors: models of boxes, and of masks, of objects."""

from acmix_jax.models.detection.detector import (
  Detections,
  Detector,
  GroundTruth,
)
from acmix_jax.models.detection.losses import total
from acmix_jax.models.detection.mask_rcnn import CascadeMaskRCNN, MaskRCNN
from acmix_jax.models.detection.retinanet import RetinaNet

__all__ = [
  'CascadeMaskRCNN',
  'Detections',
  'Detector',
  'GroundTruth',
  'MaskRCNN',
  'RetinaNet',
  'total',
]
