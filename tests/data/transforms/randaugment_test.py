"""RandAugment against hand-computed values and direct calls of Pillow."""

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from acmix_jax.data.transforms import randaugment
from tests import fake_data

FILL = (124, 116, 104)
WARP = {'resample': Image.BICUBIC, 'fillcolor': FILL}

# What timm 0.3.2 passes to the operation at magnitudes 5 and 10.
VALUES = {
  'auto_contrast': (0, 0),
  'equalize': (0, 0),
  'invert': (0, 0),
  'rotate': (15, 30),
  'posterize': (2, 4),
  'solarize': (128, 256),
  'solarize_add': (55, 110),
  'color': (0.45, 0.9),
  'contrast': (0.45, 0.9),
  'brightness': (0.45, 0.9),
  'sharpness': (0.45, 0.9),
  'shear_x': (0.15, 0.3),
  'shear_y': (0.15, 0.3),
  'translate_x': (0.225, 0.45),
  'translate_y': (0.225, 0.45),
}
UNSIGNED = {
  'auto_contrast',
  'equalize',
  'invert',
  'posterize',
  'solarize',
  'solarize_add',
}


def apply(name, image, value):
  operation = randaugment.OPERATIONS[name]
  return np.array(operation.apply(Image.fromarray(image), value, WARP))


def ramp():
  """One row with every channel value, [1, 256, 3]."""
  return np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)


def only(name, monkeypatch, **fields):
  """RandAugment that has one operation and always applies it once."""
  operations = {name: randaugment.OPERATIONS[name]}
  monkeypatch.setattr(randaugment, 'OPERATIONS', operations)
  return randaugment.RandAugment(
    num_operations=1, magnitude_std=0.0, probability=1.0, **fields
  )


@pytest.mark.parametrize('name', VALUES)
def test_values_grow_with_the_magnitude_in_both_directions(name, monkeypatch):
  assert randaugment.OPERATIONS.keys() == VALUES.keys()
  operation, seen = randaugment.OPERATIONS[name], []

  def record(image, value, warp):
    seen.append(value)
    return image

  spy = randaugment.Operation(record, operation.limit, operation.signed)
  monkeypatch.setitem(randaugment.OPERATIONS, name, spy)
  for magnitude, expected in zip((5, 10), VALUES[name], strict=True):
    transform = only(name, monkeypatch, magnitude=magnitude)
    seen.clear()
    rng = np.random.default_rng(0)
    for _ in range(20):
      transform({'image': ramp()}, rng)
    signs = (1,) if name in UNSIGNED else (-1, 1)
    np.testing.assert_allclose(
      np.unique(seen), np.unique([sign * expected for sign in signs])
    )


@pytest.mark.parametrize(
  'lost, bits', [(0, 4), (0.99, 4), (1.0, 3), (3.6, 1), (4.0, 1)]
)
def test_posterize_keeps_the_upper_bits_and_at_least_one(lost, bits):
  expected = ramp() >> (8 - bits) << (8 - bits)
  np.testing.assert_array_equal(apply('posterize', ramp(), lost), expected)


@pytest.mark.parametrize('depth, threshold', [(0.9, 256), (64, 192), (256, 0)])
def test_solarize_inverts_the_highest_values(depth, threshold):
  expected = np.where(ramp() >= threshold, 255 - ramp(), ramp())
  np.testing.assert_array_equal(apply('solarize', ramp(), depth), expected)


def test_solarize_add_brightens_the_darker_half():
  values = ramp().astype(int)
  expected = np.where(values < 128, values + 99, values)
  np.testing.assert_array_equal(apply('solarize_add', ramp(), 99.9), expected)
  # 127 + 200 is cut at 255.
  assert apply('solarize_add', ramp(), 200).max() == 255


@pytest.mark.parametrize('sign', [-1, 1])
def test_translate_moves_by_a_share_of_the_side(sign):
  image = fake_data.picture(0, (40, 20))
  for name, axis, pixels in (('translate_x', 1, 10), ('translate_y', 0, 5)):
    moved = apply(name, image, sign * 0.25)
    expected = np.roll(image, -sign * pixels, axis)
    brought_in = slice(-pixels, None) if sign > 0 else slice(0, pixels)
    index = [slice(None), slice(None)]
    index[axis] = brought_in
    expected[tuple(index)] = FILL
    np.testing.assert_array_equal(moved, expected)


def test_shear_moves_rows_or_columns_by_their_distance():
  columns = np.repeat(ramp()[:, :64], 64, axis=0)
  # The pixel at (y, x) comes from x + 0.25 (y + 0.5): 2 at y = 7.5.
  sheared = apply('shear_x', columns, 0.25).astype(int)
  np.testing.assert_allclose(
    sheared[4:60, 8:40, 0],
    8 + np.arange(32)[None] + 0.25 * (4.5 + np.arange(56)[:, None]),
    atol=1,
  )
  transposed = apply('shear_y', columns.transpose(1, 0, 2), 0.25)
  np.testing.assert_array_equal(transposed.transpose(1, 0, 2), sheared)


def test_rotation_by_a_right_angle_is_exact():
  image = fake_data.picture(1, (32, 32))
  np.testing.assert_array_equal(apply('rotate', image, 90), np.rot90(image))


def test_contrast_operations_are_those_of_pillow():
  image = fake_data.picture(2)
  pillow = Image.fromarray(image)
  for name, expected in (
    ('auto_contrast', ImageOps.autocontrast(pillow)),
    ('equalize', ImageOps.equalize(pillow)),
    ('color', ImageEnhance.Color(pillow).enhance(0.2)),
    ('contrast', ImageEnhance.Contrast(pillow).enhance(0.2)),
    ('sharpness', ImageEnhance.Sharpness(pillow).enhance(0.2)),
  ):
    result = apply(name, image, -0.8)
    np.testing.assert_array_equal(result, np.array(expected))
    assert not np.array_equal(result, image), name
  np.testing.assert_array_equal(apply('invert', image, 0), 255 - image)
  np.testing.assert_array_equal(
    apply('brightness', image, -0.5), (image * 0.5).astype(np.uint8)
  )


def test_as_many_operations_are_applied_as_asked_for(monkeypatch):
  def add_one(image, value, warp):
    return Image.fromarray(np.array(image) + 1)

  operations = {'add': randaugment.Operation(add_one)}
  monkeypatch.setattr(randaugment, 'OPERATIONS', operations)
  transform = randaugment.RandAugment(num_operations=2, probability=0.5)
  rng = np.random.default_rng(0)
  black = {'image': np.zeros((1, 1, 3), np.uint8), 'label': 3}
  applied = [transform(black, rng)['image'][0, 0, 0] for _ in range(2000)]
  shares = np.bincount(applied, minlength=3) / 2000
  # Binomial: each of two operations is applied in half of the cases.
  np.testing.assert_allclose(shares, [0.25, 0.5, 0.25], atol=0.04)


def test_magnitudes_are_normal_and_clipped(monkeypatch):
  seen = []

  def record(image, value, warp):
    seen.append(value)
    return image

  spy = randaugment.Operation(record, limit=10.0)
  monkeypatch.setattr(randaugment, 'OPERATIONS', {'spy': spy})
  transform = randaugment.RandAugment(1, probability=1.0)
  rng = np.random.default_rng(0)
  for _ in range(2000):
    transform({'image': ramp()}, rng)
  assert max(seen) == 10
  np.testing.assert_allclose(np.median(seen), 9, atol=0.05)
  # A normal deviate is within one deviation of its mean at 68.3 %.
  within = np.mean(np.abs(np.subtract(seen, 9)) < 0.5)
  np.testing.assert_allclose(within, 0.683, atol=0.03)


def test_result_is_a_function_of_the_generator():
  example = {'image': fake_data.picture(3), 'label': 7}
  transform = randaugment.RandAugment(4, probability=1.0)
  first, second, other = (
    transform(example, np.random.default_rng(seed)) for seed in (0, 0, 1)
  )
  assert first['label'] == 7 and first['image'].dtype == np.uint8
  np.testing.assert_array_equal(first['image'], second['image'])
  assert not np.array_equal(first['image'], other['image'])


@pytest.mark.parametrize(
  'fields, message',
  [
    ({'num_operations': 0}, 'num_operations=0'),
    ({'magnitude': 11}, r'magnitude=11 is not within 0\.\.10'),
    ({'magnitude': np.nan}, 'magnitude=nan'),
    ({'magnitude_std': -1}, 'magnitude_std=-1'),
    ({'magnitude_std': np.nan}, 'magnitude_std=nan'),
    ({'probability': 1.5}, 'probability=1.5'),
    ({'interpolation': 'lanczos'}, 'bilinear, bicubic'),
  ],
)
def test_bad_arguments_are_named(fields, message):
  with pytest.raises(ValueError, match=message):
    randaugment.RandAugment(**fields)
