"""Average precision against figures that pycocotools and mmdetection gave."""

import copy
import json
import math
import pathlib

import numpy as np
import pytest
from pycocotools import coco as coco_api
from pycocotools import cocoeval

from acmix_jax.metrics import coco

FIXTURES = pathlib.Path(__file__).parents[1] / 'fixtures' / 'detection'


def load(name):
  return json.loads((FIXTURES / f'coco_{name}.json').read_text())


def collected(ground_truth=None, **arguments):
  """All detections of the fixture, image by image, backwards."""
  ground_truth = ground_truth or load('ground_truth')
  categories = [category['id'] for category in ground_truth['categories']]
  precision = coco.AveragePrecision(ground_truth, with_masks=True, **arguments)
  for image in ground_truth['images'][::-1]:
    found = [x for x in load('results') if x['image_id'] == image['id']]
    boxes = np.array([x['bbox'] for x in found]).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    masks = [
      {**rle, 'counts': rle['counts'].encode()}
      for rle in (x['segmentation'] for x in found)
    ]
    labels = [categories.index(x['category_id']) for x in found]
    scores = [x['score'] for x in found]
    precision.add(image['id'], boxes, scores, labels, masks)
  return precision


@pytest.fixture(params=['faster-coco-eval', 'pycocotools'])
def library(request, monkeypatch):
  if request.param == 'pycocotools':
    monkeypatch.setattr(coco, 'faster_coco_eval', None)
  elif coco.faster_coco_eval is None:
    pytest.skip('faster-coco-eval is not installed')
  return request.param


@pytest.mark.parametrize(
  ('limits', 'suffix'),
  [((1, 10, 100), ''), ((100, 300, 1000), '_maxdets_100_300_1000')],
)
def test_all_figures(library, limits, suffix):
  figures = collected(max_detections=limits).result()
  # pycocotools' own sums are met exactly.
  tolerance = 0 if library == 'pycocotools' else 1e-15
  for kind, expected in (('box', 'bbox'), ('mask', 'segm')):
    got = [figures[f'{kind}/{name}'] for name in coco.FIGURES]
    np.testing.assert_allclose(
      got, load('expected')[expected + suffix], rtol=0, atol=tolerance
    )


def test_precision_of_classes(library):
  ground_truth = load('ground_truth')
  # Labels follow the list, figures the names.
  ground_truth['categories'] = ground_truth['categories'][::-1]
  figures = collected(ground_truth).result(per_class=True)
  for kind in ('box', 'mask'):
    each = []
    for category in ground_truth['categories']:
      alone = copy.deepcopy(ground_truth)
      alone['annotations'] = [
        annotation
        for annotation in alone['annotations']
        if annotation['category_id'] == category['id']
      ]
      each.append(figures[f'{kind}/AP/{category["name"]}'])
      expected = collected(alone).result()[f'{kind}/AP']
      assert each[-1] == pytest.approx(expected, abs=1e-12)
    assert np.mean(each) == pytest.approx(figures[f'{kind}/AP'], abs=1e-12)


def test_precision_is_that_of_pycocotools(library):
  ground_truth = load('ground_truth')
  # Labels follow the list, pycocotools the ids.
  order = [2, 0, 1]
  listed = [ground_truth['categories'][place] for place in order]
  precision = collected(ground_truth | {'categories': listed}).precision()
  truth = coco_api.COCO(FIXTURES / 'coco_ground_truth.json')
  for kind, iou_type in (('box', 'bbox'), ('mask', 'segm')):
    evaluation = cocoeval.COCOeval(
      truth, truth.loadRes(load('results')), iou_type
    )
    evaluation.evaluate()
    evaluation.accumulate()
    np.testing.assert_array_equal(evaluation.params.iouThrs, coco.OVERLAPS)
    np.testing.assert_array_equal(evaluation.params.recThrs, coco.RECALLS)
    expected = evaluation.eval['precision'][:, :, order, 0, -1]
    assert 0 < expected.mean() < 1
    np.testing.assert_allclose(precision[kind], expected, rtol=0, atol=1e-15)


def test_detections_that_come_later_count_as_well():
  precision = collected()
  before = precision.result()
  first = load('results')[0]
  place = first['image_id'], [[0, 0, 1, 1]], [2.0], [0]
  precision.add(*place, [first['segmentation']])
  assert precision.result()['box/AP'] < before['box/AP']


def test_results_file_is_that_of_the_server(tmp_path):
  collected().write(tmp_path / 'results.json')
  written = json.loads((tmp_path / 'results.json').read_text())
  expected = load('results')
  assert len(written) == len(expected)

  def key(result):
    return result['image_id'], result['category_id'], result['score']

  for got, wanted in zip(
    sorted(written, key=key), sorted(expected, key=key), strict=True
  ):
    assert got['segmentation'] == wanted['segmentation']
    assert key(got) == key(wanted)
    np.testing.assert_allclose(got['bbox'], wanted['bbox'], atol=1e-4)


def test_counting_is_silent(library, caplog, capsys):
  caplog.set_level('INFO')
  collected().result()
  assert not caplog.text and not capsys.readouterr().out


def test_nothing_detected_and_nothing_to_detect(library):
  ground_truth = load('ground_truth')
  figures = coco.AveragePrecision(ground_truth, with_masks=True).result()
  assert set(figures.values()) == {0.0}
  ground_truth['annotations'] = []
  figures = collected(ground_truth).result(per_class=True)
  assert all(math.isnan(value) for value in figures.values())
