"""What lies beyond an image's own padding changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np

from acmix_jax.models import detection
from acmix_jax.models.detection import dense, proposals
from acmix_jax.ops import anchors as anchor_ops
from tests.fixtures import detectors

SIZES = jnp.array([[90, 100], [60, 128]])
CANVASES = [(96, 128), (128, 192)]
NUM_CLASSES = 3
TRUTH = detection.GroundTruth(
  jnp.array(
    [[[10.0, 20, 50, 60], [70, 8, 99, 30]], [[5, 5, 60, 55], [0, 0, 0, 0]]]
  ),
  jnp.array([[0, 2], [1, 0]]),
  jnp.array([[True, True], [True, False]]),
)


def _outputs(anchors, channels, canvas):
  """Outputs that are the same within each image's own padding."""
  rng, other = np.random.default_rng(0), np.random.default_rng(1)
  logits, deltas, sizes = [], [], []
  for stride in anchors.strides:
    # Beyond it, anchors look more like objects than any within.
    shape = -(-canvas[0] // stride), -(-canvas[1] // stride)
    maps = other.normal(3, 1, (2, *shape, anchors.per_cell, channels + 4))
    for x, size in zip(maps, np.asarray(SIZES), strict=True):
      h, w = -(-(-(-size // 32) * 32) // stride)
      x[:h, :w] = rng.normal(0, 1, (h, w, *x.shape[2:]))
    flat = jnp.asarray(maps.reshape(2, -1, channels + 4), jnp.float32)
    logits.append(flat[..., :channels])
    deltas.append(flat[..., channels:] / 10)
    sizes.append(shape)
  return dense.Outputs(logits, deltas, anchors, sizes)


def _assert_close(small, large):
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6),
    small,
    large,
  )


def test_retinanet_gives_the_same_on_a_larger_canvas(monkeypatch):
  model = detection.RetinaNet(detectors.Given(), NUM_CLASSES, pre_nms=200)
  images = detectors.blank(2)

  def run(outputs):
    monkeypatch.setattr(
      detection.RetinaNet, 'networks', lambda *_, **__: outputs
    )
    return jax.jit(
      lambda: (
        model.apply({}, images, SIZES),
        model.apply({}, images, SIZES, TRUTH, method='losses'),
      )
    )()

  small, large = (
    run(_outputs(anchor_ops.RETINANET, NUM_CLASSES, canvas))
    for canvas in CANVASES
  )
  assert small[0].valid.sum() > 100
  _assert_close(small, large)
  assert (small[0].boxes <= jnp.tile(SIZES[:, None, ::-1], 2)).all()


def test_proposals_are_the_same_on_a_larger_canvas():
  padded = -(-SIZES // 32) * 32

  @jax.jit
  def run(logits, deltas):
    outputs = dense.Outputs(logits, deltas, anchor_ops.RPN, sizes)
    own = anchor_ops.within_padding(anchor_ops.RPN, sizes, padded)
    goals = proposals.targets(
      jnp.concatenate(outputs.boxes), own, TRUTH, jnp.zeros(own.shape), 10_000
    )
    return (
      proposals.head_losses(outputs, goals, 0.0, 0),
      proposals.propose(outputs, own, SIZES, pre_nms=100, most=50),
    )

  found = []
  for canvas in CANVASES:
    outputs = _outputs(anchor_ops.RPN, 1, canvas)
    sizes = outputs.sizes
    found.append(run(outputs.logits, outputs.deltas))
  assert found[0][1].valid.all()
  _assert_close(*found)
