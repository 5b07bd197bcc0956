"""Decoding: the pixels of Pillow, and damage that is noticed."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image
from sklearn import datasets

from acmix_jax.data import decode
from tests import fake_data

JPEG_KINDS = ('jpeg', 'progressive', 'grey', 'cmyk', 'rotated')
PNG_KINDS = ('png', 'rgba', 'palette')


def pillow(encoded: bytes) -> np.ndarray:
  image = Image.open(io.BytesIO(encoded))
  image.info.pop('transparency', None)
  return np.array(image.convert('RGB'))


@pytest.fixture(params=['simplejpeg', 'opencv'])
def decoder(request, monkeypatch):
  if request.param == 'opencv':
    monkeypatch.setattr(decode, 'simplejpeg', None)
  elif decode.simplejpeg is None:
    pytest.skip('simplejpeg is not installed')
  return request.param


@pytest.mark.parametrize('kind', JPEG_KINDS + PNG_KINDS)
def test_pixels_are_those_of_pillow(kind, decoder):
  encoded = fake_data.encode(fake_data.picture(0, (41, 29)), kind)
  image = decode.decode(encoded)
  assert image.dtype == np.uint8
  np.testing.assert_array_equal(image, pillow(encoded))


@pytest.mark.parametrize('subsampling', ['4:4:4', '4:2:2', '4:2:0'])
def test_chroma_is_upsampled_as_pillow_does(subsampling, decoder):
  encoded = fake_data.encode(
    fake_data.picture(1, (37, 23)), subsampling=subsampling
  )
  np.testing.assert_array_equal(decode.decode(encoded), pillow(encoded))


@pytest.mark.parametrize('size', [(1, 1), (7, 3), (16, 17), (101, 1)])
@pytest.mark.parametrize(
  'options',
  [
    {'progressive': True},
    {'optimize': True},
    {'restart_marker_blocks': 1},
    {'restart_marker_rows': 1, 'progressive': True},
    {'keep_rgb': True},
    {'exif': b'Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0'},
    {'icc_profile': b'no profile', 'comment': b'\xff\xd9'},
  ],
  ids=lambda options: ','.join(options),
)
def test_sound_jpegs_of_all_kinds_have_the_pixels_of_pillow(
  size, options, decoder
):
  encoded = fake_data.encode(fake_data.picture(8, size), **options)
  np.testing.assert_array_equal(decode.decode(encoded), pillow(encoded))


@pytest.mark.parametrize('subsampling', ['411', '440', '422', '420', '444'])
def test_jpegs_of_other_writers_have_the_pixels_of_pillow(subsampling, decoder):
  factor = getattr(cv2, f'IMWRITE_JPEG_SAMPLING_FACTOR_{subsampling}')
  options = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, factor]
  _, encoded = cv2.imencode('.jpg', fake_data.picture(9, (83, 45)), options)
  encoded = encoded.tobytes()
  np.testing.assert_array_equal(decode.decode(encoded), pillow(encoded))


def test_rotation_is_ignored(decoder):
  pixels = fake_data.picture(2, (40, 24))
  assert decode.decode(fake_data.encode(pixels, 'rotated')).shape == (24, 40, 3)


def test_grey16_keeps_the_high_byte():
  pixels = fake_data.picture(3)
  image = decode.decode(fake_data.encode(pixels, 'grey16'))
  np.testing.assert_array_equal(image, np.repeat(pixels[..., :1], 3, axis=2))


def ramp(low, high, dtype):
  return np.linspace(low, high, 64).astype(dtype).reshape(4, 16)


def save(image, file_format, **options):
  file = io.BytesIO()
  image.save(file, file_format, **options)
  return file.getvalue()


@pytest.mark.parametrize('kind', ['PNG', 'TIFF', 'TIFF;B', 'PPM', 'JPEG2000'])
def test_grey16_of_any_format_keeps_the_high_byte(kind):
  pixels = ramp(0, 65535, np.uint16)
  image = Image.fromarray(pixels)
  if kind == 'TIFF;B':
    image = Image.frombytes('I;16B', image.size, pixels.byteswap().tobytes())
  decoded = decode.decode(save(image, kind.split(';')[0]))
  np.testing.assert_array_equal(
    decoded, np.repeat((pixels >> 8).astype(np.uint8)[..., None], 3, axis=2)
  )


def write_tiff(samples, bits, photometric):
  """A little-endian TIFF file of grey [h, w], whatever its depth."""
  text = ''.join(f'{value:0{bits}b}' for value in samples.ravel())
  if bits == 16:
    data = samples.astype('<u2').tobytes()
  else:
    data = int(text, 2).to_bytes(len(text) // 8, 'big')
  height, width = samples.shape
  entries = (
    (256, width),
    (257, height),
    (258, bits),
    (259, 1),
    (262, photometric),
    (273, 8),
    (277, 1),
    (278, height),
    (279, len(data)),
  )
  return b''.join(
    [
      struct.pack('<2sHI', b'II', 42, 8 + len(data)),
      data,
      struct.pack('<H', len(entries)),
      *(struct.pack('<HHII', tag, 4, 1, value) for tag, value in entries),
      bytes(4),
    ]
  )


@pytest.mark.parametrize('bits, photometric', [(16, 1), (12, 1), (16, 0)])
def test_tiff_is_scaled_by_its_own_depth(bits, photometric):
  samples = ramp(0, 2**bits - 1, np.uint16)
  image = decode.decode(write_tiff(samples, bits, photometric))
  expected = samples >> (bits - 8)
  if photometric == 0:  # White is zero.
    expected = 255 - expected
  np.testing.assert_array_equal(image[..., 0], expected)


def write_fits(pixels):
  """A FITS file of signed 16 bits, the format of astronomy."""
  height, width = pixels.shape
  cards = {'SIMPLE': 'T', 'BITPIX': 16, 'NAXIS': 2}
  cards |= {'NAXIS1': width, 'NAXIS2': height}
  lines = [f'{key:8}= {value:>20}' for key, value in cards.items()]
  header = ''.join(f'{line:80}' for line in [*lines, 'END'])
  return f'{header:2880}'.encode() + pixels.astype('>i2').tobytes()


@pytest.mark.parametrize(
  'encoded, name',
  [
    (save(Image.fromarray(ramp(0, 1, np.float32)), 'TIFF'), "TIFF .*'F'"),
    (save(Image.fromarray(ramp(0, 2**31 - 1, np.int32)), 'TIFF'), "TIFF .*'I'"),
    (save(Image.fromarray(ramp(0, 1, np.float32)), 'PPM'), "PPM .*'F'"),
    (write_fits(ramp(0, 4095, np.int16)), "FITS .*'I;16'"),
  ],
  ids=['float TIFF', 'int32 TIFF', 'PFM', 'FITS'],
)
def test_numbers_without_a_known_range_are_refused(encoded, name):
  with pytest.raises(decode.DecodeError, match=f'{name}.*convert it'):
    decode.decode(encoded)


def claim_size(encoded, width, height):
  """A JPEG or PNG file with another size in its header."""
  if encoded.startswith(b'\xff\xd8'):
    frame = encoded.index(b'\xff\xc0') + 5
    size = struct.pack('>HH', height, width)
    return encoded[:frame] + size + encoded[frame + 4 :]
  header = b'IHDR' + struct.pack('>II', width, height) + encoded[24:29]
  checksum = struct.pack('>I', zlib.crc32(header))
  return encoded[:12] + header + checksum + encoded[33:]


@pytest.mark.parametrize('kind', ['jpeg', 'grey', 'cmyk', 'png'])
def test_too_many_pixels_are_refused_before_they_are_decoded(
  kind, monkeypatch, decoder
):
  encoded = fake_data.encode(fake_data.picture(0), kind)
  with pytest.raises(decode.DecodeError):
    decode.decode(claim_size(encoded, 65_000, 65_000))
  monkeypatch.setattr(decode, 'MAX_PIXELS', 40 * 32)
  decode.decode(encoded)
  monkeypatch.setattr(decode, 'MAX_PIXELS', 40 * 32 - 1)
  with pytest.raises(decode.DecodeError, match='40 x 32 .* 1,279 .* smaller'):
    decode.decode(encoded)


@pytest.mark.parametrize('kind', ['jpeg', 'progressive', 'cmyk', 'png'])
@pytest.mark.parametrize('share', [0.0, 0.1, 0.5, 0.9, 0.99])
def test_truncated_file_is_damaged(kind, share, decoder):
  encoded = fake_data.encode(fake_data.picture(4, (128, 96)), kind)
  with pytest.raises(decode.DecodeError):
    decode.decode(encoded[: int(share * len(encoded))])


@pytest.mark.parametrize('cut', [1, 2, 3])
def test_jpeg_without_its_end_marker_is_damaged(cut, decoder):
  encoded = fake_data.encode(fake_data.picture(5, (128, 96)))
  with pytest.raises(decode.DecodeError):
    decode.decode(encoded[:-cut])


def test_bytes_after_the_end_marker_are_harmless(decoder):
  encoded = fake_data.encode(fake_data.picture(6))
  np.testing.assert_array_equal(
    decode.decode(encoded + bytes(100)), decode.decode(encoded)
  )


@pytest.mark.parametrize('content', [b'', b'not an image', bytes(1000)])
def test_other_content_is_damaged(content):
  with pytest.raises(decode.DecodeError):
    decode.decode(content)


@pytest.mark.parametrize('kind', ['jpeg', 'grey', 'progressive', 'cmyk'])
def test_zeros_in_the_middle_of_a_jpeg_are_damage(kind):
  pytest.importorskip('simplejpeg')
  encoded = bytearray(fake_data.encode(fake_data.picture(7, (256, 192)), kind))
  middle = len(encoded) // 2
  encoded[middle : middle + 1024] = bytes(1024)
  with pytest.raises(decode.DecodeError):
    decode.decode(bytes(encoded))


def test_empty_file_is_named_so():
  with pytest.raises(decode.DecodeError, match='the file is empty'):
    decode.decode(b'')


@pytest.mark.parametrize(
  'options, missed',
  [
    ({'subsampling': '4:4:4'}, 0.04),
    ({'quality': 75, 'subsampling': '4:2:0'}, 0.2),
    ({'restart_marker_rows': 1}, 0),
    ({'progressive': True}, 0),
  ],
  ids=['fine', 'coarse', 'restarts', 'progressive'],
)
def test_overwritten_bytes_are_damage_where_the_decoder_sees_it(
  options, missed
):
  simplejpeg = pytest.importorskip('simplejpeg')
  photograph = datasets.load_sample_images().images[0][100:260, 200:420]
  encoded = fake_data.encode(photograph, **options)
  sound, rng = decode.decode(encoded).astype(int), np.random.default_rng(0)
  wrong = 0
  for _ in range(300):
    damaged = bytearray(encoded)
    start = rng.integers(len(encoded) // 4, len(encoded) * 3 // 4)
    damaged[start : start + 64] = rng.bytes(64)
    try:
      pixels = decode.decode(bytes(damaged))
    except decode.DecodeError:
      continue
    # What is accepted satisfies the strict decoder.
    simplejpeg.decode_jpeg(bytes(damaged), strict=True)
    differs = np.abs(pixels - sound).max(axis=2) > 8
    wrong += differs.mean() > 0.1
  assert wrong <= missed * 300
