"""Targets of the mask head, from bitmaps of the ground truths.

Source: mmdetection 2.28 mask_target and BitmapMasks.crop_and_resize.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from acmix_jax.ops import bin_weights
from acmix_jax.ops import boxes as box_ops


def mask_targets(
  bitmaps: Shaped[Array, 'b g s t'],
  regions: Float[Array, 'b g 4'],
  boxes: Float[Array, 'b r 4'],
  index: Int[Array, 'b r'],
  size: Shaped[Array | np.ndarray, 'b 2'],
  output_size: int = 28,
) -> Bool[Array, 'b r {output_size} {output_size}']:
  """What the mask head should find within boxes.

  RoIAlign (`ops.roi_align`, stride 1) of a bitmap of 0 and 1 on the box, which
  is clipped to the image first; a pixel is set where that is at least 0.5.

  A bitmap covers a region of the image and is 0 around it. Whole bitmaps have
  regions (0, 0, w, h). Crops to whole pixels, without scaling, give the same
  targets. Bitmaps of fewer pixels than their region approximate them: samples
  are then interpolated between, and counted in, pixels of the bitmap.

  Args:
    bitmaps: A bitmap for each ground truth, 0 or 1 (or shares between).
    regions: The part of the image that each covers, x1 y1 x2 y2 in pixels. An
      empty one gives an empty target.
    boxes: Boxes of positives, in pixels of the image.
    index: Ground truth of each box.
    size: Height and width of each image with its padding, in pixels.
    output_size: Side of the targets.
  """
  run = functools.partial(_image_targets, output_size=output_size)
  size = jnp.asarray(size, jnp.float32)
  return jax.vmap(run)(bitmaps, regions, boxes, index, size)


def _image_targets(bitmaps, regions, boxes, index, size, output_size):
  x1, y1, x2, y2 = jnp.moveaxis(box_ops.clip(boxes, size), -1, 0)
  left, top, right, bottom = jnp.moveaxis(regions[index], -1, 0)
  _, s, t = bitmaps.shape
  by_row = _weights(y1, y2, top, bottom, s, size[0], output_size)
  by_column = _weights(x1, x2, left, right, t, size[1], output_size)
  shares = jnp.einsum(
    'riy,ryx,rjx->rij',
    by_row,
    bitmaps[index].astype(jnp.float32),
    by_column,
    precision='highest',
  )
  return shares >= 0.5


def _weights(start, stop, low, high, pixels, size, bins):
  """`bin_weights.bin_weights` of the pixels between low and high."""
  scale = jnp.where(high > low, pixels / (high - low), 0)
  # Ends of the segment and of the image, where pixel i is at i.
  start, stop = ((x - low) * scale - 0.5 for x in (start, stop))
  first, last = -low * scale, (size - low) * scale - 1
  places = jnp.arange(pixels)[None]
  return bin_weights.bin_weights(start, stop, bins, places, first, last)
