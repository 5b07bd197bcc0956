"""Swin as mmdetection and mmsegmentation hold it."""

import json

import numpy as np

from acmix_jax.weights.tables import swin
from tests.fixtures import detectors


def _openmmlab(name):
  """The name that mmdetection gives an entry of the official detector."""
  for official, theirs in (
    ('patch_embed.proj.', 'patch_embed.projection.'),
    ('backbone.layers.', 'backbone.stages.'),
    ('.attn.', '.attn.w_msa.'),
    ('.mlp.fc1.', '.ffn.layers.0.0.'),
    ('.mlp.fc2.', '.ffn.layers.1.'),
  ):
    name = name.replace(official, theirs)
  return name


def test_names_become_the_official_ones():
  [path] = (detectors.HERE / 'models').glob('mask_rcnn_swin_tiny_*.json')
  parameters = json.loads(path.read_text())['parameters']
  shapes = {name: tuple(x['shape']) for name, x in parameters.items()}
  given = {_openmmlab(name): np.zeros(shape) for name, shape in shapes.items()}
  assert len(given.keys() & shapes.keys()) < len(given) / 3
  renamed = swin.official_names(given)
  assert {name: x.shape for name, x in renamed.items()} == shapes


def test_merged_pixels_come_in_the_official_order():
  rng = np.random.default_rng(0)
  pixels = rng.normal(size=(2, 2, 3))  # row, column, channel
  # As torch.nn.Unfold orders them.
  theirs = pixels.transpose(2, 0, 1).ravel()
  # As the official code does: down, then right.
  official = np.concatenate(
    [pixels[0, 0], pixels[1, 0], pixels[0, 1], pixels[1, 1]]
  )
  weight = rng.normal(size=(6, 12))
  given = {
    'backbone.patch_embed.projection.weight': np.zeros(1),
    'backbone.stages.0.downsample.norm.weight': weight[0],
    'backbone.stages.0.downsample.reduction.weight': weight,
  }
  found = swin.official_names(given)
  merging = 'backbone.layers.0.downsample.'
  np.testing.assert_allclose(
    found[merging + 'reduction.weight'] @ official, weight @ theirs
  )
  np.testing.assert_allclose(
    found[merging + 'norm.weight'] @ official, weight[0] @ theirs
  )
