"""The transforms with which classifiers are trained and evaluated."""

import functools

import ml_collections

from acmix_jax.data.transforms import image, randaugment, transform


def train_transform(config: ml_collections.ConfigDict) -> transform.Compose:
  """The training transform of `config.data`: crop, flip and RandAugment.

  Raises:
    ValueError: a field is out of range.
  """
  make = functools.partial(transform.from_config, config=config)
  steps = [
    transform.Decode(),
    make(
      image.RandomResizedCrop,
      {
        'size': 'image_size',
        'scale': 'crop_scale',
        'ratio': 'crop_ratio',
        'interpolation': 'interpolation',
      },
    ),
    make(image.RandomFlip, {'probability': 'flip'}),
  ]
  if config.randaugment_operations:
    steps.append(
      make(
        randaugment.RandAugment,
        {
          'num_operations': 'randaugment_operations',
          'magnitude': 'randaugment_magnitude',
          'magnitude_std': 'randaugment_std',
          'interpolation': 'interpolation',
        },
        fill=tuple(round(255 * value) for value in config.mean),
      )
    )
  return transform.Compose(tuple(steps))


def eval_transform(config: ml_collections.ConfigDict) -> transform.Compose:
  """The evaluation transform of `config.data`: resize and central crop.

  Raises:
    ValueError: a field is out of range, or the resized image would be smaller
      than the crop.
  """
  make = functools.partial(transform.from_config, config=config)
  crop = make(image.CenterCrop, {'size': 'image_size'})
  if config.eval_resize < config.image_size:
    raise ValueError(
      f'data.eval_resize={config.eval_resize} is less than '
      f'data.image_size={config.image_size}, which is cropped from it; leave '
      'it out, or set both.'
    )
  return transform.Compose(
    (
      transform.Decode(),
      make(
        image.ResizeShort,
        {'size': 'eval_resize', 'interpolation': 'interpolation'},
      ),
      crop,
    )
  )
