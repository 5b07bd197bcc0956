"""Normalisation of images on the device."""

import math

import jax.numpy as jnp
import ml_collections
from jaxtyping import Array, Float32, Int32, UInt8


class Normalization:
  """(x / 255 - mean) / std of each channel, in float32.

  Raises:
    ValueError: `data.mean` or `data.std` is not three numbers that can work.
  """

  def __init__(self, data: ml_collections.ConfigDict):
    for field, least in (('mean', -math.inf), ('std', 0)):
      values = tuple(data[field])
      if len(values) != 3 or not all(least < x < math.inf for x in values):
        raise ValueError(
          f'data.{field}={values} must be three finite numbers, one for each '
          'of R, G and B' + (', above 0.' if field == 'std' else '.')
        )
    self._mean, self._std = tuple(data.mean), tuple(data.std)

  def __call__(
    self, images: UInt8[Array, 'b h w 3']
  ) -> Float32[Array, 'b h w 3']:
    """Normalises whole images."""
    mean, std = (
      jnp.reshape(jnp.asarray(x), (1, 1, 1, 3)) for x in (self._mean, self._std)
    )
    return (images.astype(jnp.float32) / 255 - mean) / std

  def padded(
    self, images: UInt8[Array, 'b h w 3'], sizes: Int32[Array, 'b 2']
  ) -> Float32[Array, 'b h w 3']:
    """Normalises images, and puts zeros, the mean colour, around them.

    Args:
      images: images that were padded to a common size, right and below.
      sizes: height and width of each without its padding.
    """
    rows, columns = (
      jnp.arange(side)[None] < sizes[:, axis, None]
      for axis, side in enumerate(images.shape[1:3])
    )
    inside = rows[:, :, None] & columns[:, None, :]
    return jnp.where(inside[..., None], self(images), 0)
