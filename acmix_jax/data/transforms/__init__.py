"""Transforms of one example: `transform(example, rng) -> example`.

An example is a dict with `image`, once decoded uint8 RGB [h, w, 3], and
whatever belongs to it. A transform returns a new dict. One that moves pixels
moves the other arrays with them, and refuses those that it does not know.
Everything random comes from the `rng` that is passed in.
"""

from acmix_jax.data.transforms.crop import RandomCrop
from acmix_jax.data.transforms.image import (
  CenterCrop,
  RandomFlip,
  RandomResizedCrop,
  ResizeShort,
)
from acmix_jax.data.transforms.pad import Pad
from acmix_jax.data.transforms.photometric import PhotometricDistortion
from acmix_jax.data.transforms.randaugment import RandAugment
from acmix_jax.data.transforms.rescale import RandomRescale
from acmix_jax.data.transforms.transform import (
  Compose,
  Decode,
  Example,
  Transform,
)

__all__ = [
  'CenterCrop',
  'Compose',
  'Decode',
  'Example',
  'Pad',
  'PhotometricDistortion',
  'RandAugment',
  'RandomCrop',
  'RandomFlip',
  'RandomRescale',
  'RandomResizedCrop',
  'ResizeShort',
  'Transform',
]
