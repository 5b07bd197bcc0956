"""The transforms with which classifiers are trained and evaluated."""

import ml_collections

from acmix_jax.data.transforms import image, randaugment, transform


def train_transform(config: ml_collections.ConfigDict) -> transform.Compose:
  """The training transform of `config.data`: crop, flip and RandAugment."""
  steps = [
    transform.Decode(),
    image.RandomResizedCrop(
      config.image_size,
      scale=tuple(config.crop_scale),
      ratio=tuple(config.crop_ratio),
      interpolation=config.interpolation,
    ),
    image.RandomFlip(config.flip),
  ]
  if config.randaugment_operations:
    steps.append(
      randaugment.RandAugment(
        config.randaugment_operations,
        magnitude=config.randaugment_magnitude,
        magnitude_std=config.randaugment_std,
        fill=tuple(round(255 * value) for value in config.mean),
        interpolation=config.interpolation,
      )
    )
  return transform.Compose(tuple(steps))


def eval_transform(config: ml_collections.ConfigDict) -> transform.Compose:
  """The evaluation transform of `config.data`: resize and central crop.

  Raises:
    ValueError: the resized image would be smaller than the crop.
  """
  if config.eval_resize < config.image_size:
    raise ValueError(
      f'data.eval_resize={config.eval_resize} is less than '
      f'data.image_size={config.image_size}, which is cropped from it; leave '
      'it out, or set both.'
    )
  return transform.Compose(
    (
      transform.Decode(),
      image.ResizeShort(config.eval_resize, interpolation=config.interpolation),
      image.CenterCrop(config.image_size),
    )
  )
