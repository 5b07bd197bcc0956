"""Scores against those of mmsegmentation, and counts that stay exact."""

import json
import pathlib

import numpy as np
import pytest

from acmix_jax.metrics import confusion

METRICS = pathlib.Path(__file__).parents[1] / 'fixtures' / 'segmentation'


def count(prediction, truth, num_classes, ignored=255):
  """The confusion matrix, pixel by pixel."""
  matrix = np.zeros((num_classes, num_classes), np.int64)
  for true, predicted in zip(truth.ravel(), prediction.ravel(), strict=True):
    if true != ignored:
      matrix[true, predicted] += 1
  return matrix


@pytest.fixture(scope='module')
def expected():
  """Arrays of three images, and the scores of all together."""
  scores = json.loads((METRICS / 'metrics.json').read_text())
  return dict(np.load(METRICS / 'metrics.npz')), scores


@pytest.fixture(scope='module')
def matrices(expected):
  arrays, scores = expected
  return [
    count(
      arrays[f'metrics/{i}/prediction'],
      arrays[f'metrics/{i}/truth'],
      scores['num_classes'],
    )
    for i in range(3)
  ]


def test_areas_of_each_image(expected, matrices):
  arrays, _ = expected
  for i, matrix in enumerate(matrices):
    for key, areas in {
      'intersect': np.diagonal(matrix),
      'prediction_area': matrix.sum(axis=0),
      'truth_area': matrix.sum(axis=1),
    }.items():
      np.testing.assert_array_equal(arrays[f'metrics/{i}/{key}'], areas)


def test_scores_of_the_split_to_the_last_digit(expected, matrices):
  arrays, scores = expected
  total = sum(matrices)
  iou = confusion.intersection_over_union(total)
  accuracy = confusion.class_accuracy(total)
  np.testing.assert_array_equal(iou, arrays['metrics/all/IoU'])
  np.testing.assert_array_equal(accuracy, arrays['metrics/all/Acc'])
  assert confusion.pixel_accuracy(total) == scores['aAcc']
  assert np.nanmean(iou) == scores['mIoU']
  assert np.nanmean(accuracy) == scores['mAcc']


def test_absent_classes_have_no_score_and_invented_ones_have_zero():
  matrix = np.array([[3, 1, 0], [0, 0, 0], [0, 0, 0]])
  iou = confusion.intersection_over_union(matrix)
  np.testing.assert_array_equal(iou, [0.75, 0, np.nan])
  accuracy = confusion.class_accuracy(matrix)
  np.testing.assert_array_equal(accuracy, [0.75, np.nan, np.nan])
  assert np.isnan(confusion.pixel_accuracy(np.zeros((3, 3), int)))


def test_one_pixel_in_2_to_the_25_counts():
  matrix = np.array([[2**25, 1], [0, 2**25]])
  assert confusion.pixel_accuracy(matrix) == 2**26 / (2**26 + 1) < 1
  iou = confusion.intersection_over_union(matrix)
  np.testing.assert_array_equal(iou, np.full(2, 2**25 / (2**25 + 1)))
