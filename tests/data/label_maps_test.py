"""Label files: the numbers they hold, and what the numbers mean."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from acmix_jax.data import decode, label_maps
from tests import fake_data

NUMBERS = np.arange(60, dtype=np.uint8).reshape(5, 12)


def save(image, file_format='PNG', **options):
  file = io.BytesIO()
  image.save(file, file_format, **options)
  return file.getvalue()


def write_grey(numbers, depth):
  """A grey PNG file of any depth, as the standard defines it."""

  def chunk(name, content):
    body = name + content
    size, checksum = len(content), zlib.crc32(body)
    return struct.pack('>I', size) + body + struct.pack('>I', checksum)

  height, width = numbers.shape
  rows = b''
  for row in numbers:
    bits = ''.join(f'{number:0{depth}b}' for number in row)
    rows += b'\0' + int(bits, 2).to_bytes(len(bits) // 8, 'big')
  header = struct.pack('>IIBBBBB', width, height, depth, 0, 0, 0, 0)
  return (
    b'\x89PNG\r\n\x1a\n'
    + chunk(b'IHDR', header)
    + chunk(b'IDAT', zlib.compress(rows))
    + chunk(b'IEND', b'')
  )


def palette(numbers):
  """An image whose indices are the numbers, of unrelated colours."""
  image = Image.fromarray(numbers).convert('P')
  image.putdata(numbers.ravel().tolist())
  image.putpalette([(7 * i + 3) % 256 for i in range(768)])
  return image


@pytest.mark.parametrize('depth', [1, 2, 4, 8, 16])
def test_grey_of_any_depth_holds_its_numbers(depth):
  numbers = np.arange(64).reshape(4, 16) % min(2**depth, 60)
  stored = label_maps.read(write_grey(numbers, depth))
  assert stored.dtype == np.uint8
  np.testing.assert_array_equal(stored, numbers)


@pytest.mark.parametrize('bits', [4, 8])
def test_palette_holds_its_indices(bits):
  numbers = np.minimum(NUMBERS, 2**bits - 1)
  encoded = save(palette(numbers), bits=bits, transparency=bytes([0, 128]))
  np.testing.assert_array_equal(label_maps.read(encoded), numbers)


@pytest.mark.parametrize('mode', ['RGB', 'RGBA', 'LA'])
@pytest.mark.parametrize('numbers', [NUMBERS, 0 * NUMBERS])
def test_colours_are_refused_also_where_channels_are_equal(mode, numbers):
  encoded = save(Image.fromarray(numbers).convert(mode))
  with pytest.raises(label_maps.LabelError, match=r"colours.*convert\('L'\)"):
    label_maps.read(encoded)


def test_forms_that_say_no_classes_are_refused():
  grey = Image.fromarray(NUMBERS)
  colors = palette(NUMBERS).convert('RGB')
  transparent = grey.convert('RGBA')
  transparent.putalpha(grey)
  deep = Image.fromarray(NUMBERS.astype(np.uint16) * 1000)
  for encoded, message in (
    (save(colors), 'colours or transparency.*one channel of 8 bits'),
    (save(transparent), 'colours or transparency'),
    (save(deep), '16 bits hold numbers up to 59000.*instances'),
    (save(grey, 'JPEG'), 'JPEG file, which does not keep the numbers'),
  ):
    with pytest.raises(label_maps.LabelError, match=message):
      label_maps.read(encoded)


@pytest.mark.parametrize('share', [0.0, 0.05, 0.5, 0.9])
def test_truncated_file_is_damaged(share):
  rng = np.random.default_rng(0)
  numbers = rng.integers(0, 150, (64, 64)).astype(np.uint8)
  encoded = fake_data.encode_labels(numbers)
  with pytest.raises(decode.DecodeError):
    label_maps.read(encoded[: int(share * len(encoded))])


def test_other_damage_is_named(monkeypatch):
  for encoded, message in (
    (b'', 'the file is empty'),
    (b'GIF89a something', 'no PNG file'),
    (b'\x89PNG\r\n\x1a\n' + bytes(100), 'no image of a known format'),
  ):
    with pytest.raises(decode.DecodeError, match=message):
      label_maps.read(encoded)
  monkeypatch.setattr(decode, 'MAX_PIXELS', 59)
  with pytest.raises(decode.DecodeError, match='12 x 5 pixels are more'):
    label_maps.read(fake_data.encode_labels(NUMBERS))


def test_convention_of_ade20k():
  convention = label_maps.Convention(150, zero_is_ignored=True)
  stored = np.array([[0, 1, 2], [149, 150, 255]], np.uint8)
  np.testing.assert_array_equal(
    convention.apply(stored), [[255, 0, 1], [148, 149, 255]]
  )
  with pytest.raises(decode.DecodeError, match='labels 151, 200'):
    convention.apply(np.array([[151, 3, 200]], np.uint8))


@pytest.mark.parametrize('ignored', [255, 200, 2, -1])
def test_ignored_label_is_that_of_the_files(ignored):
  convention = label_maps.Convention(4, ignored)
  stored = [0, 1, 2, 3] + [ignored] * (ignored >= 0)
  classes = convention.apply(np.array([stored], np.uint8))
  expected = [255 if number == ignored else number for number in stored]
  np.testing.assert_array_equal(classes[0], expected)


def test_most_classes_that_eight_bits_tell_apart():
  stored = np.arange(255, dtype=np.uint8)[None]
  np.testing.assert_array_equal(
    label_maps.Convention(255).apply(stored), stored
  )
  for number in (0, 256):
    with pytest.raises(ValueError, match=f'{number} classes cannot be told'):
      label_maps.Convention(number)


@pytest.mark.parametrize(
  'convention, unknown, remedy',
  [
    ((150,), [150], 'set data.zero_is_ignored=True.* must name 151'),
    ((2,), [128], 'set data.ignored_label=128.* must name 129'),
    ((2, 0), [255], 'set data.ignored_label=255'),
    ((2, 255, True), [3], 'set data.ignored_label=3.* must name 3'),
    ((19,), [19, 33], 'must name 34, or the files'),
    ((150, 255, True, False), [151], 'belongs to another data set'),
  ],
)
def test_unknown_numbers_come_with_a_remedy(convention, unknown, remedy):
  convention = label_maps.Convention(*convention)
  with pytest.raises(decode.DecodeError, match=remedy):
    convention.apply(np.array([unknown], np.uint8))


def test_what_a_convention_says_of_itself():
  assert str(label_maps.Convention(19)) == (
    '19 classes are numbered 0 to 18 (ignored: 255)'
  )
  assert str(label_maps.Convention(150, zero_is_ignored=True)) == (
    '150 classes are numbered 1 to 150 (ignored: 0, 255)'
  )
