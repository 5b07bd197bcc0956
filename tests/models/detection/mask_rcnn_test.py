"""Mask R-CNN and its cascade against mmdetection's, from given stages on."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from acmix_jax.models import detection
from acmix_jax.models.detection import proposals
from acmix_jax.ops import masks
from tests.fixtures import detectors, official

IMAGES = range(3)
# Of the fixtures, beside the fields of the detectors.
MODELS = {
  'mask_rcnn': (detection.MaskRCNN, {}),
  'cascade_mask_rcnn': (detection.CascadeMaskRCNN, {'box_convs': 2}),
}
FIELDS = {
  **detectors.FIELDS,
  'mask_depth': 2,
  'box_hidden': 32,
  'finest_side': 14.0,
  'rpn_samples': 100_000,
  'train_pre_nms': 500,
  'train_proposals': 60,
  'pre_nms': 300,
  'num_proposals': 80,
  'max_detections': 30,
}
# Proposals of the case that has most.
MOST = 82


def _make(name, **fields):
  make, own = MODELS[name]
  return make(
    detectors.Given(), detectors.NUM_CLASSES, **{**FIELDS, **own, **fields}
  )


@pytest.fixture(scope='module', params=MODELS)
def detector(request):
  """A model with the fixture's weights."""
  name = request.param
  arrays, spec = detectors.load(name)
  model = _make(name)
  shapes = jax.eval_shape(model.init, jax.random.key(0), detectors.blank())
  weights = detectors.state_dict(spec)
  return types.SimpleNamespace(
    name=name,
    arrays=arrays,
    spec=spec,
    model=model,
    variables=detectors.variables(name, arrays, weights, shapes),
    truth=detectors.truth(arrays),
    sizes=detectors.sizes(spec),
  )


def _given(arrays):
  """The proposals of the jittered case, padded."""
  boxes = np.tile(np.float32([10, 20, 50, 60]), (3, MOST, 1))
  valid = np.zeros((3, MOST), bool)
  for i in IMAGES:
    rows = arrays[f'jittered/proposals/{i}']
    boxes[i, : len(rows)] = rows[:, :4]
    valid[i, : len(rows)] = True
  return boxes, valid


@pytest.fixture(scope='module')
def train(detector):
  """Function to gradients, losses and states of several cases.

  '': proposals of the region proposal network. 'jittered/': given ones, and no
  losses of that network. One compilation serves all.
  """
  propose = proposals.propose
  given = proposals.Proposals(*_given(detector.arrays))

  def total(params, truth, is_given):
    def propose_or_take(*args, **options):
      boxes, valid = propose(*args, **options)
      rows = ((0, 0), (0, MOST - boxes.shape[1]))
      return proposals.Proposals(
        jnp.where(is_given, given.boxes, jnp.pad(boxes, (*rows, (0, 0)))),
        jnp.where(is_given, given.valid, jnp.pad(valid, rows)),
      )

    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(proposals, 'propose', propose_or_take)
      losses, state = detector.model.apply(
        {**detector.variables, 'params': params},
        detectors.blank(),
        detector.sizes,
        truth,
        method='losses',
        mutable=['batch_stats', 'intermediates'],
        rngs={'sampling': jax.random.key(0)},
      )
    losses = {
      name: jnp.where(is_given & ('rpn' in name), 0, loss)
      for name, loss in losses.items()
    }
    total = detection.total(losses)
    return total, ({**losses, 'total': total}, state)

  run = jax.jit(jax.grad(total, has_aux=True))

  @functools.cache
  def train(case, num_objects=None):
    truth = detector.truth
    if num_objects is not None:
      valid = truth.valid & (np.arange(truth.valid.shape[1]) < num_objects)
      truth = truth._replace(valid=valid)
    return run(detector.variables['params'], truth, jnp.array(bool(case)))

  return train


@pytest.mark.parametrize('case', ['', 'jittered/'])
def test_losses_and_gradients_equal_the_source(detector, train, case):
  gradients, (losses, _) = train(case)
  names = [
    key.removeprefix(f'{case}losses/')
    for key in detector.arrays
    if key.startswith(f'{case}losses/')
  ]
  assert set(losses) - set(names) <= {'loss_rpn_cls', 'loss_rpn_bbox'}
  for name in names:
    official.assert_relative(
      losses[name], detector.arrays[f'{case}losses/{name}'], name=name
    )
  detectors.assert_gradients(detector.name, gradients, detector.arrays, case)


@pytest.mark.parametrize('case', ['', 'jittered/'])
def test_sampled_regions_equal_the_source(detector, train, case):
  _, (_, state) = train(case)
  arrays = detector.arrays
  for stage in range(len(detector.model.stages)):
    [sampled] = state['intermediates'][f'stage{stage}']
    _assert_regions(sampled, arrays, f'{case}stage{stage}/')
    # Positives of the fixture follow each other, image by image.
    positive = np.asarray(sampled.positive)
    targets = np.asarray(_mask_targets(sampled, detector.truth))[positive]
    want = np.unpackbits(arrays[f'{case}stage{stage}/mask_targets'], axis=-1)
    assert targets.shape == want[..., :28].shape
    # A value of .5 is so up to rounding.
    assert (targets != want[..., :28]).sum() <= 4


def _assert_regions(sampled, arrays, stage):
  rows = np.asarray(sampled.valid)
  rois = arrays[f'{stage}rois']
  np.testing.assert_array_equal(np.nonzero(rows)[0], rois[:, 0])
  np.testing.assert_allclose(
    np.asarray(sampled.boxes)[rows], rois[:, 1:], atol=1e-3
  )
  np.testing.assert_array_equal(
    np.asarray(sampled.labels)[rows], arrays[f'{stage}targets/labels']
  )
  for i in IMAGES:
    want = f'{stage}sampling/{i}/'
    positive = np.asarray(sampled.positive[i])
    np.testing.assert_array_equal(
      np.asarray(sampled.index[i])[positive],
      arrays[f'{want}pos_assigned_gt_inds'],
    )
    np.testing.assert_array_equal(
      np.asarray(sampled.is_truth[i])[positive], arrays[f'{want}pos_is_gt']
    )


@jax.jit
def _mask_targets(sampled, truth):
  padded = np.array([[96, 128], [96, 96], [96, 128]])
  return masks.mask_targets(
    truth.masks, truth.regions, sampled.boxes, sampled.index, padded
  )


def test_proposals_equal_the_source(detector, train, found):
  arrays = detector.arrays
  _, (_, state) = train('')
  [(boxes, valid)] = state['intermediates']['proposals']
  for got_boxes, got_valid, name in (
    (boxes, valid, 'rpn/proposals/{}'),
    (*found[1]['intermediates']['proposals'][0], 'test/{}/proposals'),
  ):
    for i in IMAGES:
      want = arrays[name.format(i)]
      got = np.asarray(got_boxes[i])[np.asarray(got_valid[i])]
      np.testing.assert_allclose(got, want[:, :4], atol=1e-3)


@pytest.fixture(scope='module')
def found(detector):
  """Detections."""

  @jax.jit
  def run(variables):
    return detector.model.apply(
      variables, detectors.blank(), detector.sizes, mutable=['intermediates']
    )

  return run(detector.variables)


def test_detections_equal_the_source(detector, found):
  got = jax.tree.map(np.asarray, found[0])
  for i in IMAGES:
    want = detector.arrays[f'test/{i}/boxes_scores']
    rows = np.flatnonzero(got.valid[i])
    assert (np.diff(got.scores[i][rows]) <= 0).all()
    # The source's are by class, and in pixels of the original image.
    rows = rows[np.lexsort((-got.scores[i][rows], got.labels[i][rows]))]
    np.testing.assert_array_equal(
      got.labels[i][rows], detector.arrays[f'test/{i}/labels']
    )
    boxes = got.boxes[i][rows] / np.float32(detector.spec['scale_factors'][i])
    np.testing.assert_allclose(boxes, want[:, :4], atol=1e-3)
    np.testing.assert_allclose(got.scores[i][rows], want[:, 4], atol=1e-5)
    if i == 0:
      np.testing.assert_allclose(
        got.masks[i][rows[:10]],
        detector.arrays['test/0/mask_probabilities_first10'],
        atol=2e-5,
      )


def test_running_statistics_follow_the_regions(detector, train):
  names = [name for name in detector.arrays if name.startswith('after_step/')]
  assert len(names) == (2 if detector.name == 'cascade_mask_rcnn' else 0)
  _, (_, state) = train('')
  for name in names:
    got = state['batch_stats']['box_heads_0']['norm0'][
      'mean' if name.endswith('mean') else 'var'
    ]
    official.assert_relative(got, detector.arrays[name])


def test_without_objects_all_is_background_and_finite(detector, train):
  gradients, (losses, state) = train('', num_objects=0)
  for name, loss in losses.items():
    assert np.isfinite(loss).all(), name
    if name.endswith(('loss_rpn_bbox', 'loss_bbox', 'loss_mask')):
      np.testing.assert_array_equal(loss, 0, name)
    if name.endswith('loss_cls'):
      assert loss > 0
  for path, x in jax.tree_util.tree_leaves_with_path(gradients):
    assert np.isfinite(x).all(), path
  [sampled] = state['intermediates']['stage0']
  assert not sampled.positive.any()
  assert sampled.valid.sum() == 3 * FIELDS['train_proposals']
