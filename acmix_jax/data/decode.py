"""Encoded images to RGB arrays, with the pixels that Pillow would give."""

import io

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

_CV2_FLAGS = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION


class DecodeError(ValueError):
  """An image that is damaged, cut short, or no image at all."""


def decode(encoded: bytes) -> np.ndarray:
  """Decodes a file of any format that Pillow reads.

  The pixels are those of `PIL.Image.open(file).convert('RGB')`: grey is
  repeated, palettes are looked up, CMYK is converted, alpha is dropped. An EXIF
  rotation is ignored, since boxes and masks refer to the stored pixels. Of an
  animation the first frame is taken. Unlike in Pillow, 16-bit grey keeps its
  high byte, where Pillow clips everything above 255 to white.

  Grey and three-channel JPEG files go through libjpeg-turbo (simplejpeg where
  it is installed, else OpenCV), all else through Pillow. What counts as damage
  in a JPEG depends on which: a file that is cut short is always found; wrong
  bytes in the middle are found by simplejpeg where they break the Huffman code,
  and by OpenCV only where they break the structure of the file.

  Args:
    encoded: the content of an image file.

  Returns:
    uint8 [h, w, 3].

  Raises:
    DecodeError: the file is empty, damaged, or of no known format.
  """
  frame, channels = _find_jpeg_frame(encoded)
  if channels not in (1, 3):
    return _decode_any(encoded)
  if encoded.rfind(b'\xff\xd9') < frame:
    raise DecodeError('the JPEG file is cut short: it has no end marker')
  return _decode_jpeg(encoded)


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


def _decode_jpeg(encoded: bytes) -> np.ndarray:
  if simplejpeg is not None:
    try:
      return simplejpeg.decode_jpeg(encoded, strict=True)
    except ValueError as error:
      # The rest (an unusual subsampling or version) is for OpenCV to judge.
      if any(word in str(error) for word in ('Corrupt', 'Premature')):
        raise DecodeError(str(error)) from error
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
      image.load()
      if image.mode.startswith('I;16'):
        grey = (np.asarray(image) >> 8).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
      # Without it Pillow would try to map the transparent colour, and warn.
      image.info.pop('transparency', None)
      return np.array(image.convert('RGB'))
  except UnidentifiedImageError as error:
    raise DecodeError('no image of a known format') from error
  # On damaged files Pillow's readers raise errors of nearly every kind.
  except Exception as error:
    raise DecodeError(f'{type(error).__name__}: {error}') from error
