"""Cross-entropy of pixels, from logits of fewer pixels.

The logits of all pixels, [512, 512, 150] of an image, are far larger than the
map that they are resized from. They are made in bands of rows, one after the
other, and made again for the gradient.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Float64, Int, UInt8

from acmix_jax.ops import resize, xla_cpu

# Resized logits of an image that exist at a time, about.
_BAND_SIZE = 2**21

# Of 24 binary digits the logits keep 16 on TPU and 11 on GPU (TF32); weights of
# whole factors up to 64 lose none.
_multiply = functools.partial(
  xla_cpu.multiply_axis, precision=jax.lax.Precision.HIGH
)


class PixelSums(NamedTuple):
  """Sums over the labelled pixels, of a batch or of each image [b].

  Attributes:
    loss: Cross-entropy, float32.
    correct: Pixels whose label has the greatest logit, int32.
    labelled: Pixels with a label, int32.
  """

  loss: jax.Array
  correct: jax.Array
  labelled: jax.Array


def pixel_sums(
  logits: Float[Array, 'b h w k'],
  label_map: UInt8[Array, 'b H W'],
  ignored_label: int = 255,
) -> PixelSums:
  """Compares labels with logits, which are resized to them, bilinearly.

  Args:
    logits: of any size.
    label_map: classes from 0, or `ignored_label`.
    ignored_label: label of pixels that do not count.
  """
  batch, height, width, classes = logits.shape
  _, rows, columns = label_map.shape
  logits = logits.astype(jnp.float32)
  across = jnp.float32(resize.linear_matrix(width, columns))
  count = math.ceil(rows * columns * classes / _BAND_SIZE)
  weights, starts = _bands(resize.linear_matrix(height, rows), count)
  _, band, taken = weights.shape
  label_map = jnp.pad(
    label_map,
    ((0, 0), (0, len(starts) * band - rows), (0, 0)),
    constant_values=ignored_label,
  )
  bands = (
    jnp.stack([logits[:, start : start + taken] for start in starts]),
    weights,
    jnp.moveaxis(label_map.reshape(batch, -1, band, columns), 1, 0),
  )

  def add_band(sums, band):
    sources, weights, labels = band
    band_logits = _multiply(weights, _multiply(across, sources, axis=2), axis=1)
    band_sums = _compare(band_logits, labels, labels != ignored_label)
    return jax.tree.map(jnp.add, sums, band_sums), None

  # Sums of each image: a band needs nothing of other devices.
  zeros = PixelSums(
    jnp.zeros(batch), *(jnp.zeros(batch, jnp.int32) for _ in range(2))
  )
  sums, _ = jax.lax.scan(
    jax.checkpoint(add_band, prevent_cse=False), zeros, bands
  )
  return jax.tree.map(jnp.sum, sums)


def _bands(
  matrix: Float64[np.ndarray, 'H h'], count: int
) -> tuple[Float32[np.ndarray, 'n band taken'], Int[np.ndarray, ' n']]:
  """A matrix in bands of rows, each with the few columns that it needs.

  Returns:
    The bands, of which the last is filled up with zeros, and the first column
    of each.
  """
  rows, columns = matrix.shape
  band = math.ceil(rows / count)
  count = math.ceil(rows / band)
  bands = np.pad(matrix, ((0, count * band - rows), (0, 0)))
  bands = bands.reshape(count, band, columns)
  used = bands.any(axis=1)
  starts = used.argmax(axis=1)
  taken = np.max(columns - used[:, ::-1].argmax(axis=1) - starts)
  starts = np.minimum(starts, columns - taken)
  parts = [b[:, s : s + taken] for b, s in zip(bands, starts, strict=True)]
  return np.float32(parts), starts


def _compare(logits, labels, labelled) -> PixelSums:
  """Sums of each image over [b, r, w]; there is no array of one-hot labels."""
  classes = jnp.arange(logits.shape[-1]).reshape(1, 1, 1, -1)
  # A sum, as a gather would have a scatter as gradient.
  of_label = jnp.where(classes == labels[..., None], logits, 0).sum(axis=-1)
  losses = jax.nn.logsumexp(logits, axis=-1) - of_label
  correct = labelled & (jnp.argmax(logits, axis=-1) == labels)
  return PixelSums(
    jnp.where(labelled, losses, 0).sum(axis=(1, 2)),
    correct.sum(axis=(1, 2), dtype=jnp.int32),
    labelled.sum(axis=(1, 2), dtype=jnp.int32),
  )
