"""Augmentation of whole batches on the device: erasing, mixup and CutMix.

Everything has a static shape and random numbers come from the key alone, so
that the functions work under jit, on sharded batches and in parts of a batch.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32, PRNGKeyArray

_ERASING_ATTEMPTS = 10


@dataclasses.dataclass(frozen=True)
class RandomErasing:
  """Fills a random box of some images with normal noise.

  Source: "Random Erasing Data Augmentation"; the distribution is that of timm
  0.3.2 in mode 'pixel', which erases normalised images. Its loop over up to ten
  boxes until one fits is here the first that fits of ten drawn at once.

  Attributes:
    probability: Probability with which an image is erased.
    area: Least and greatest area of the box, as a share of the image.
    ratio: Least and greatest height / width of the box.
  """

  probability: float
  area: tuple[float, float] = (0.02, 1 / 3)
  ratio: tuple[float, float] = (0.3, 1 / 0.3)

  def __post_init__(self):
    _check_probability('erasing_probability', self.probability)
    for field in ('area', 'ratio'):
      low, high = getattr(self, field)
      if not 0 < low <= high < math.inf:
        raise ValueError(
          f'RandomErasing: {field}={(low, high)} is not (least, greatest), '
          'finite and above 0.'
        )

  def __call__(
    self, key: PRNGKeyArray, images: Float[Array, 'b h w c']
  ) -> Float[Array, 'b h w c']:
    """Erases in images of unit variance."""
    if not self.probability:
      return images
    count, height, width, _ = images.shape
    chosen_key, box_key, noise_key = jax.random.split(key, 3)
    chosen = jax.random.bernoulli(chosen_key, self.probability, (count,))
    boxes = self.sample_boxes(box_key, count, height, width)
    erased = chosen[:, None, None] & _inside(boxes, height, width)
    noise = jax.random.normal(noise_key, images.shape, images.dtype)
    return jnp.where(erased[..., None], noise, images)

  def sample_boxes(
    self, key: PRNGKeyArray, count: int, height: int, width: int
  ) -> Int32[Array, 'b 4']:
    """Draws boxes: top, left, bottom, right in pixels; empty if none fits."""
    area_key, ratio_key, top_key, left_key = jax.random.split(key, 4)
    attempts = (count, _ERASING_ATTEMPTS)
    low, high = (share * height * width for share in self.area)
    area = jax.random.uniform(area_key, attempts, minval=low, maxval=high)
    low, high = (math.log(ratio) for ratio in self.ratio)
    ratio = jnp.exp(
      jax.random.uniform(ratio_key, attempts, minval=low, maxval=high)
    )
    box_height = jnp.round(jnp.sqrt(area * ratio)).astype(jnp.int32)
    box_width = jnp.round(jnp.sqrt(area / ratio)).astype(jnp.int32)
    fits = (box_height < height) & (box_width < width)
    first = jnp.argmax(fits, axis=1)[:, None]
    box_height, box_width = (
      jnp.take_along_axis(jnp.where(fits, side, 0), first, axis=1)[:, 0]
      for side in (box_height, box_width)
    )
    top = jax.random.randint(top_key, (count,), 0, height - box_height + 1)
    left = jax.random.randint(left_key, (count,), 0, width - box_width + 1)
    return jnp.stack([top, left, top + box_height, left + box_width], axis=1)


@dataclasses.dataclass(frozen=True)
class MixupCutmix:
  """Blends each image and its target with those of another image.

  Source: "mixup: Beyond Empirical Risk Minimization" and "CutMix:
  Regularization Strategy to Train Strong Classifiers with Localizable
  Features"; the distribution is that of timm 0.3.2 in mode 'batch' with
  corrected lambda. A group of images shares one draw: mixup keeps the share
  lambda ~ Beta(alpha, alpha) of an image, CutMix replaces a box of about the
  area 1 - lambda, and the targets get the share that is left of the image. The
  other image is the one at the same place from the end of the group; it comes
  from another device only where a group spans devices.

  Attributes:
    mixup_alpha: Parameter of mixup's Beta(alpha, alpha); 0: no mixup.
    cutmix_alpha: Parameter of CutMix's Beta(alpha, alpha); 0: no CutMix.
    probability: Probability with which a group is blended at all.
    switch_probability: Probability of CutMix where mixup is on too.
    group_size: Images that share a draw: a GPU's batch in the sources. The
      whole batch does where this does not divide it, and at 0.
  """

  mixup_alpha: float
  cutmix_alpha: float
  probability: float = 1.0
  switch_probability: float = 0.5
  group_size: int = 0

  def __post_init__(self):
    _check_probability('mixup_probability', self.probability)
    _check_probability('mixup_switch_probability', self.switch_probability)
    for field in ('mixup_alpha', 'cutmix_alpha'):
      if not 0 <= getattr(self, field) < math.inf:
        raise ValueError(
          f'augment.{field}={getattr(self, field)} is not a finite number of '
          'at least 0, which switches it off.'
        )
    if self.group_size < 0:
      raise ValueError(
        f'augment.mixup_group_size={self.group_size} is negative; 0 stands for '
        'the whole batch.'
      )

  def __call__(
    self,
    key: PRNGKeyArray,
    images: Float[Array, 'b h w c'],
    targets: Float[Array, 'b k'],
  ) -> tuple[Float[Array, 'b h w c'], Float[Array, 'b k']]:
    """Blends images and distributions over classes."""
    if not self.mixup_alpha and not self.cutmix_alpha:
      return images, targets
    count, height, width, _ = images.shape
    shared = self.group_size and count % self.group_size == 0
    groups = count // self.group_size if shared else 1
    weights = jax.vmap(lambda key: self.sample_weights(key, height, width))(
      jax.random.split(key, groups)
    )
    images = _blend(images, weights[:, None, :, :, None])
    return images, _blend(targets, weights.mean(axis=(1, 2))[:, None, None])

  def sample_weights(
    self, key: PRNGKeyArray, height: int, width: int
  ) -> Float32[Array, 'h w']:
    """Draws the share that each pixel keeps of its image."""
    cut_key, lambda_key, box_key, blend_key = jax.random.split(key, 4)
    cutmix = self.switch_probability if self.mixup_alpha else 1.0
    cut = jax.random.bernoulli(cut_key, cutmix if self.cutmix_alpha else 0.0)
    alpha = jnp.where(cut, self.cutmix_alpha, self.mixup_alpha)
    kept = jax.random.beta(lambda_key, alpha, alpha)
    box = _inside(_sample_cut(box_key, 1 - kept, height, width), height, width)
    weights = jnp.where(cut, 1.0 - box[0], kept)
    blended = jax.random.bernoulli(blend_key, self.probability)
    return jnp.where(blended, weights, 1.0)


def _sample_cut(key, area, height, width):
  """A box [1, 4] around a random pixel, clipped to the image."""
  sizes = jnp.array([height, width])
  half = (sizes * jnp.sqrt(area)).astype(jnp.int32) // 2
  centre = jax.random.randint(key, (2,), 0, sizes)
  corners = jnp.stack([centre - half, centre + half])
  corners = jnp.clip(corners, 0, sizes[None])
  return corners.reshape(1, 4)


def _inside(boxes, height, width):
  """True inside the boxes: [n, 4] of top, left, bottom, right -> [n, h, w]."""
  top, left, bottom, right = (x[:, None] for x in jnp.moveaxis(boxes, 1, 0))
  rows, columns = jnp.arange(height)[None], jnp.arange(width)[None]
  in_rows = (top <= rows) & (rows < bottom)
  in_columns = (left <= columns) & (columns < right)
  return in_rows[:, :, None] & in_columns[:, None, :]


def _blend(x, weights):
  """Blends [b, ...] with its groups reversed; weights [groups, 1, ...]."""
  grouped = x.reshape(len(weights), -1, *x.shape[1:])
  blended = weights * grouped + (1 - weights) * grouped[:, ::-1]
  return blended.reshape(x.shape)


def _check_probability(field, value):
  if not 0 <= value <= 1:
    raise ValueError(f'augment.{field}={value} is not within 0..1.')
