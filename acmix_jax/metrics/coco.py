"""Average precision of boxes and masks, as COCO counts it."""

import contextlib
import functools
import json
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import coco as coco_api
from pycocotools import cocoeval
from pycocotools import mask as coco_mask

try:
  import faster_coco_eval
except ImportError:
  faster_coco_eval = None
# It says through the log what pycocotools prints.
logging.getLogger('faster_coco_eval').setLevel(logging.WARNING)

logger = logging.getLogger(__name__)

# Names of the twelve figures in the order in which pycocotools prints them; the
# ones of small, medium and large objects: up to 32 x 32 and 96 x 96 pixels.
FIGURES = (
  *('AP', 'AP50', 'AP75', 'APs', 'APm', 'APl'),
  *('AR1', 'AR10', 'AR100', 'ARs', 'ARm', 'ARl'),
)

# Overlaps from which on a detection is right, and the recalls at which the
# precision is taken.
OVERLAPS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)

_TYPES = {'box': 'bbox', 'mask': 'segm'}
_AREAS = ('all', 'small', 'medium', 'large')


class AveragePrecision:
  """Collects the detections of a data set and rates them.

  Images may come in any order; each should come once. Detections are kept with
  masks as run lengths: about 1 kB each. faster-coco-eval counts where it is
  installed (acmix-jax[coco]), which is faster and gives the same figures, else
  pycocotools.
  """

  def __init__(
    self,
    ground_truth: Mapping[str, Sequence[dict[str, Any]]],
    *,
    with_masks: bool,
    max_detections: tuple[int, int, int] = (1, 10, 100),
  ):
    """Starts without detections.

    Args:
      ground_truth: content of a file in COCO format: `images`, `annotations`
        and `categories`; a label is the place of a category in the list.
      with_masks: whether masks are rated as well.
      max_detections: numbers of best detections of an image and class that AR1,
        AR10 and AR100 are of; all other figures are of the last.
    """
    self._ground_truth = {**ground_truth}
    self._categories = [x['id'] for x in ground_truth['categories']]
    self._names = [x['name'] for x in ground_truth['categories']]
    # The evaluation sorts the categories by id.
    self._places = np.argsort(np.argsort(self._categories))
    self._max_detections = list(max_detections)
    self._kinds = ('box', 'mask') if with_masks else ('box',)
    self._detections: list[dict[str, Any]] = []
    # What was counted of them, by kind.
    self._counts: dict[str, tuple[np.ndarray, np.ndarray]] = {}

  def add(
    self,
    image_id: int,
    boxes: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    masks: Sequence[dict[str, Any]] | None = None,
  ) -> None:
    """Takes the detections of an image.

    Args:
      image_id: id of the image in the ground truth.
      boxes: float [n, 4], x1 y1 x2 y2 in pixels of the file.
      scores: float [n].
      labels: int [n].
      masks: RLEs of n masks, see `paste.paste`; None without masks.
    """
    self._counts.clear()
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4).copy()
    boxes[:, 2:] -= boxes[:, :2]
    columns = boxes.tolist(), np.asarray(scores).tolist(), labels
    for row, (box, score, label) in enumerate(zip(*columns, strict=True)):
      detection = {
        'image_id': int(image_id),
        'category_id': self._categories[label],
        'bbox': box,
        'score': score,
      }
      if masks is not None:
        detection['segmentation'] = masks[row]
      self._detections.append(detection)

  def results(self) -> list[dict[str, Any]]:
    """The detections in the format of COCO's results, for `json.dump`."""
    results = []
    for detection in self._detections:
      rle = detection.get('segmentation')
      if rle is not None:
        text = {'size': rle['size'], 'counts': rle['counts'].decode('ascii')}
        detection = {**detection, 'segmentation': text}
      results.append(detection)
    return results

  def write(self, path: str | os.PathLike) -> None:
    """Writes a file for the evaluation server."""
    with open(path, 'w') as file:
      json.dump(self.results(), file)

  def result(self, per_class: bool = False) -> dict[str, float]:
    """Figures of all images of the ground truth, from 0 to 1.

    Args:
      per_class: whether to add the AP of each class.

    Returns:
      'box/AP' and so on by `FIGURES`, 'mask/AP' and so on, and on demand
      'box/AP/NAME'; nan where there is no such object.
    """
    figures = {}
    for kind in self._kinds:
      precision, recall = self._count(kind)
      for name, values in _figures(precision, recall):
        figures[f'{kind}/{name}'] = _mean(values)
      if per_class:
        for name, place in zip(self._names, self._places, strict=True):
          figures[f'{kind}/AP/{name}'] = _mean(precision[:, :, place, 0, -1])
    return figures

  def precision(self) -> dict[str, np.ndarray]:
    """Precision over recall, which AP is the mean of.

    Returns:
      Of 'box' and, where masks are rated, of 'mask': float
      [OVERLAPS, RECALLS, labels], for objects of all sizes; the largest
      precision at that recall or a greater one. 0 where so many objects are not
      found; -1 for classes without objects.
    """
    return {
      kind: self._count(kind)[0][:, :, self._places, 0, -1]
      for kind in self._kinds
    }

  def _count(self, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Precisions [T, R, K, A, M] and recalls [T, K, A, M] of pycocotools.

    T thresholds of overlap, R recalls, K classes, A ranges of area and M
    numbers of detections; -1 where there is no object.
    """
    if kind in self._counts:
      return self._counts[kind]
    detections = [
      self._measured(kind, number, detection)
      for number, detection in enumerate(self._detections, start=1)
    ]
    api, evaluation = coco_api.COCO, cocoeval.COCOeval
    if faster_coco_eval is not None:
      api = faster_coco_eval.COCO
      # It reports each step, at INFO if nobody else takes it.
      evaluation = functools.partial(
        faster_coco_eval.COCOeval_faster, print_function=logger.debug
      )
    with contextlib.redirect_stdout(None):
      sides = []
      for annotations in (self._ground_truth['annotations'], detections):
        side = api()
        side.dataset = {**self._ground_truth, 'annotations': annotations}
        side.createIndex()
        sides.append(side)
      counted = evaluation(*sides, _TYPES[kind])
      counted.params.maxDets = self._max_detections
      counted.evaluate()
      counted.accumulate()
    self._counts[kind] = counted.eval['precision'], counted.eval['recall']
    return self._counts[kind]

  def _measured(
    self, kind: str, number: int, detection: dict[str, Any]
  ) -> dict[str, Any]:
    """A detection with its area, by which it is small, medium or large.

    That of a mask is the number of its pixels, as in pycocotools for results
    without boxes; mmdetection since 2.26 does so as well. Before (and so in the
    figures that Swin's authors published) it was the area of the box. APs, APm
    and APl of masks differ by about 0.01, AP does not.
    """
    measured = {**detection, 'id': number, 'iscrowd': 0}
    if kind == 'box':
      measured.pop('segmentation', None)
      measured['area'] = detection['bbox'][2] * detection['bbox'][3]
    else:
      measured['area'] = float(coco_mask.area(detection['segmentation']))
    return measured


def _figures(precision: np.ndarray, recall: np.ndarray):
  """Yields the name and the values of which each figure is the mean."""
  # Thresholds of overlap are 0.5, 0.55, ... 0.95.
  yield from (
    ('AP', precision[:, :, :, 0, -1]),
    ('AP50', precision[0, :, :, 0, -1]),
    ('AP75', precision[5, :, :, 0, -1]),
  )
  for place, name in enumerate(FIGURES[3:6], start=1):
    yield name, precision[:, :, :, place, -1]
  for place, name in enumerate(FIGURES[6:9]):
    yield name, recall[:, :, 0, place]
  for place, name in enumerate(FIGURES[9:], start=1):
    yield name, recall[:, :, place, -1]


def _mean(values: np.ndarray) -> float:
  """Mean of the values that are not -1; nan: there are none."""
  values = values[values > -1]
  return float(np.mean(values)) if len(values) else float('nan')
