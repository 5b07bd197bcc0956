"""What mmdetection 2.28.2 computes: single steps and parts of detectors."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from acmix_jax.ops import anchors

_HERE = pathlib.Path(__file__).parents[2] / 'fixtures' / 'detection'


def _load(name):
  return {k: jnp.asarray(x) for k, x in np.load(_HERE / name).items()}


UNITS = _load('units.npz')
DETECTORS = _load('units_detectors.npz')

# The images of the detectors: without padding, and with their own.
IMAGE_SIZES = np.array([(91, 128), (80, 90), (96, 110)])
PADDED_SIZES = np.array([(96, 128), (96, 96), (96, 128)])
MAP_SIZES = {
  anchors.RPN: [(24, 32), (12, 16), (6, 8), (3, 4), (2, 2)],
  anchors.RETINANET: [(12, 16), (6, 8), (3, 4), (2, 2), (1, 1)],
}


def group(name, arrays=UNITS):
  """The arrays whose names start with name and a stroke."""
  start = f'{name}/'
  return {
    key.removeprefix(start): value
    for key, value in arrays.items()
    if key.startswith(start)
  }


def bits(packed, width):
  """Bitmaps that are packed along their width."""
  return np.unpackbits(packed, axis=-1)[..., :width].astype(bool)


@functools.cache
def anchors_by_level(shapes):
  """Anchors of a batch of 96 x 128 pixels."""
  return jax.jit(lambda: anchors.on_maps(shapes, MAP_SIZES[shapes]))()


def all_anchors(shapes):
  """Anchors of all levels, [1, n, 4]."""
  return jnp.concatenate(anchors_by_level(shapes))[None]


def padded_rows(rows, number):
  """Rows [n, ...] as one image's [1, number, ...], and which are no padding.

  Padding is filled with 7: what it holds must not matter.
  """
  rows = np.asarray(rows, np.float32)
  filled = np.full((1, number, *rows.shape[1:]), 7, np.float32)
  filled[0, : len(rows)] = rows
  valid = np.arange(number)[None] < len(rows)
  return jnp.asarray(filled), jnp.asarray(valid)
