"""Encoded images to RGB arrays, with the pixels that Pillow would give."""

import io
import struct
from typing import BinaryIO

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

try:
  import simplejpeg
except ImportError:
  simplejpeg = None

# Pipelines decode in threads and processes of their own; threads of OpenCV
# under each of those only compete for the same cores.
cv2.setNumThreads(0)

# Most pixels of an image, 0.5 GiB of RGB: where Pillow refuses one as well. A
# file of a few kB may claim any number, and every thread decodes one.
MAX_PIXELS = 178_956_970

_CV2_FLAGS = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
# What simplejpeg says of sound files: kinds that it does not know, and
# warnings about what the pixels do not depend on. All else is damage.
_JPEG_ODDITIES = (
  'determine subsampling',
  'determine colorspace',
  'color conversion',
  'JFIF revision',
  'Adobe color transform',
  'ICC marker',
  'Invalid SOS parameters',
)
# Where the numbers of grey with more than 8 bits are known to span their range.
_DEEP_GREY = (
  ('PNG', 'I;16'),
  ('TIFF', 'I;16'),
  ('TIFF', 'I;16B'),
  ('JPEG2000', 'I;16'),
  ('PPM', 'I'),  # 16 bits, which Pillow widens.
)
_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262  # Tags of TIFF.
_WHITE_IS_ZERO = 0


class DecodeError(ValueError):
  """An image that is damaged, cut short, of no known kind, or too large."""


def decode(encoded: bytes) -> np.ndarray:
  """Decodes a file of any format that Pillow reads.

  The pixels are those of `PIL.Image.open(file).convert('RGB')`: grey is
  repeated, palettes are looked up, CMYK is converted, alpha is dropped. An EXIF
  rotation is ignored, since boxes and masks refer to the stored pixels. Of an
  animation the first frame is taken. Unlike in Pillow, grey of 9 to 16 bits
  keeps its 8 highest, where Pillow clips everything above 255 to white; grey
  of 32 bits or floating point, whose black and white no file states, is
  refused.

  Grey and three-channel JPEG files go through libjpeg-turbo (simplejpeg where
  it is installed, else OpenCV), all else through Pillow. What counts as damage
  in a JPEG depends on which: a file that is cut short is always found; wrong
  bytes in the middle are found by simplejpeg where they break the Huffman code
  or the structure of the file, without it only where nothing can be read.
  Neither can find wrong bytes that happen to be a code of as many blocks: with
  64 random bytes in the middle, 69 of 333 photographs of ImageNet. Checksums of
  the whole file, as array_record keeps them, find all.

  Args:
    encoded: the content of an image file.

  Returns:
    uint8 [h, w, 3].

  Raises:
    DecodeError: the file is empty, damaged, of no known format, of numbers
      without a known range, or has more than `MAX_PIXELS` pixels.
  """
  if not encoded:
    raise DecodeError('the file is empty')
  frame, channels = _find_jpeg_frame(encoded)
  if not frame:
    return _decode_any(encoded)
  height, width = struct.unpack_from('>HH', encoded, frame + 5)
  check_pixels(width, height)
  if encoded.rfind(b'\xff\xd9') < frame:
    raise DecodeError('the JPEG file is cut short: it has no end marker')
  if channels in (1, 3):
    return _decode_jpeg(encoded)
  if channels == 4:
    # Pillow converts the colours, but notices no damage.
    _decode_strictly(encoded, 'CMYK')
  return _decode_any(encoded)


def read_size(file: str | BinaryIO) -> tuple[int, int]:
  """Height and width of an image, from its header alone.

  Args:
    file: path of a file, or an open one.

  Raises:
    DecodeError: the file is of no known format, or its header damaged.
    OSError: it cannot be read.
  """
  try:
    with Image.open(file) as image:
      return image.height, image.width
  except UnidentifiedImageError as error:
    raise DecodeError('no image of a known format') from error
  except Exception as error:
    # Pillow's own errors have no number, those of the disk do.
    if isinstance(error, OSError) and error.errno is not None:
      raise
    raise DecodeError(f'{type(error).__name__}: {error}') from error


def _find_jpeg_frame(encoded: bytes) -> tuple[int, int]:
  """Returns the place of a JPEG's frame header and its number of channels.

  Returns (0, 0) where the bytes are not plainly a JPEG file.
  """
  position = 2 if encoded.startswith(b'\xff\xd8') else len(encoded)
  while position + 9 < len(encoded) and encoded[position] == 0xFF:
    marker = encoded[position + 1]
    # C0 to CF are frame headers, except for the tables C4, C8 and CC.
    if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
      return position, encoded[position + 9]
    length = int.from_bytes(encoded[position + 2 : position + 4], 'big')
    position += 1 if marker == 0xFF else 2 + length
  return 0, 0


def _decode_strictly(encoded: bytes, colorspace: str) -> np.ndarray | None:
  """Decodes by simplejpeg; None where it is missing or does not know how."""
  if simplejpeg is None:
    return None
  try:
    return simplejpeg.decode_jpeg(encoded, colorspace, strict=True)
  except ValueError as error:
    if any(oddity in str(error) for oddity in _JPEG_ODDITIES):
      return None
    raise DecodeError(str(error)) from error


def _decode_jpeg(encoded: bytes) -> np.ndarray:
  image = _decode_strictly(encoded, 'RGB')
  if image is not None:
    return image
  try:
    image = cv2.imdecode(np.frombuffer(encoded, np.uint8), _CV2_FLAGS)
  except cv2.error as error:
    raise DecodeError(str(error)) from error
  if image is None:
    raise DecodeError('OpenCV cannot decode the JPEG file')
  return cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image)


def _decode_any(encoded: bytes) -> np.ndarray:
  try:
    with Image.open(io.BytesIO(encoded)) as image:
      check_pixels(*image.size)
      image.load()
      if image.mode[0] in 'IF':
        return np.repeat(_deep_grey(image)[..., None], 3, axis=2)
      # Without it Pillow would try to map the transparent colour, and warn.
      image.info.pop('transparency', None)
      return np.array(image.convert('RGB'))
  except DecodeError:
    raise
  except UnidentifiedImageError as error:
    raise DecodeError('no image of a known format') from error
  # On damaged files Pillow's readers raise errors of nearly every kind.
  except Exception as error:
    raise DecodeError(f'{type(error).__name__}: {error}') from error


def _deep_grey(image: Image.Image) -> np.ndarray:
  """The 8 highest bits of grey with more, uint8 [h, w]."""
  if (image.format, image.mode) not in _DEEP_GREY:
    raise DecodeError(
      f'a {image.format} file of mode {image.mode!r} does not say which '
      'numbers are black and white; convert it to 8 or 16 bits a channel'
    )
  tags = image.tag_v2 if image.format == 'TIFF' else {}
  (bits,) = tags.get(_BITS_PER_SAMPLE, (16,))
  grey = (np.asarray(image) >> (bits - 8)).astype(np.uint8)
  # Pillow inverts such files of 8 bits, and leaves these as they are.
  return ~grey if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else grey


def check_pixels(width: int, height: int) -> None:
  """Raises a DecodeError where an image is too large to be decoded."""
  if width * height > MAX_PIXELS:
    raise DecodeError(
      f'{width} x {height} pixels are more than the {MAX_PIXELS:,} that are '
      'decoded; store a smaller copy'
    )


def check_same_size(
  image: tuple[int, ...], labels: tuple[int, ...], of_what: str = 'label map'
) -> None:
  """Raises a DecodeError where an image and its labels differ in size.

  Args:
    image: shape of the image, height and width first.
    labels: shape of the label map or of the masks, height and width first.
    of_what: what the message calls the labels.
  """
  image, labels = image[:2], labels[:2]
  if image == labels:
    return
  message = (
    f'the image is {image[0]} x {image[1]} pixels (height x width), its '
    f'{of_what} {labels[0]} x {labels[1]}'
  )
  if image == labels[::-1]:
    message += (
      '; if a rotation is noted in the file (EXIF), which is not applied, turn '
      'the pixels themselves'
    )
  raise DecodeError(message)
