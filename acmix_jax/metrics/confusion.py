"""Scores of a segmentation from its confusion matrix.

A confusion matrix holds numbers of pixels, int [k, k]: its rows are the true
classes, its columns the predicted ones. Matrices of parts of a split add up;
the scores are those of the whole split, not means over its images. Source:
mmsegmentation 0.x, mmseg/core/evaluation/metrics.py, which adds float32
histograms: whole numbers stay exact beyond 2**24 pixels.
"""

import numpy as np


def intersection_over_union(matrix: np.ndarray) -> np.ndarray:
  """Hits / (true + predicted - hits) of each class, float64 [k].

  0 for a class that was predicted but is nowhere true; nan for one that is
  neither true nor predicted anywhere.
  """
  hits = np.diagonal(matrix)
  return _ratio(hits, matrix.sum(axis=0) + matrix.sum(axis=1) - hits)


def class_accuracy(matrix: np.ndarray) -> np.ndarray:
  """Hits / true of each class, float64 [k]; nan for one that is nowhere true.

  Also known as recall.
  """
  return _ratio(np.diagonal(matrix), matrix.sum(axis=1))


def pixel_accuracy(matrix: np.ndarray) -> float:
  """Hits of all classes / all pixels; nan without a pixel."""
  return float(_ratio(np.trace(matrix), matrix.sum()))


def _ratio(part, whole):
  return part / np.where(whole, whole, np.nan)
