"""Decoding: the pixels of Pillow, and damage that is noticed."""

import io

import numpy as np
import pytest
from PIL import Image

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


def test_rotation_is_ignored(decoder):
  pixels = fake_data.picture(2, (40, 24))
  assert decode.decode(fake_data.encode(pixels, 'rotated')).shape == (24, 40, 3)


def test_grey16_keeps_the_high_byte():
  pixels = fake_data.picture(3)
  image = decode.decode(fake_data.encode(pixels, 'grey16'))
  np.testing.assert_array_equal(image, np.repeat(pixels[..., :1], 3, axis=2))


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


def test_zeros_in_the_middle_of_a_jpeg_are_damage():
  pytest.importorskip('simplejpeg')
  encoded = bytearray(fake_data.encode(fake_data.picture(7, (256, 192))))
  middle = len(encoded) // 2
  encoded[middle : middle + 1024] = bytes(1024)
  with pytest.raises(decode.DecodeError):
    decode.decode(bytes(encoded))
