"""Pictures of predictions: what a model says, drawn on the image.

Pure functions of arrays; Pillow draws. Images are uint8 RGB [h, w, 3], boxes
have the corners x1 y1 x2 y2 in pixels of the image.
"""

import colorsys
import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# Small images are enlarged by a whole number until their shorter side has this
# many pixels, unless the longer one had more than `_LONGEST` then.
_SHORTEST = 256
_LONGEST = 1024
_OPACITY = 0.55  # of label maps and masks
_PAPER, _TEXT, _SHADE = (255, 255, 255), (20, 20, 20), (225, 225, 225)
# Rows of a legend and characters of a name; the rest is left out.
_MOST_ROWS = 24
_MOST_LETTERS = 32
# Turn of the hue from a class to the next one: the golden section, by which
# any number of first hues lie far from each other.
_HUE_STEP = 0.6180339887
# Saturation and brightness, in turns.
_SHADES = ((0.85, 0.95), (0.55, 1.0), (0.95, 0.65), (0.4, 0.75))


class Row(NamedTuple):
  """A line of a legend.

  Attributes:
    label: Class, which gives the colour.
    name: Text.
    share: Length of the bar, in [0, 1], and number beside it.
  """

  label: int
  name: str
  share: float


@functools.cache
def palette() -> np.ndarray:
  """Colours of the labels 0 to 255, uint8 [256, 3].

  0 is a dark grey and 255, the label of pixels that count nothing, white.
  """
  colors = [(64, 64, 64)]
  for label in range(1, 255):
    saturation, value = _SHADES[label // 7 % len(_SHADES)]
    rgb = colorsys.hsv_to_rgb(label * _HUE_STEP % 1, saturation, value)
    colors.append(tuple(round(255 * level) for level in rgb))
  colors.append((255, 255, 255))
  result = np.array(colors, np.uint8)
  result.flags.writeable = False
  return result


def label_image(label_map: np.ndarray) -> Image.Image:
  """A label map [h, w] as a palette image, whose values are the labels.

  Labels are the classes from 0, as in training, whatever the files of the data
  set hold. Programs that read the image unchanged get them back; viewers show
  the colours of `palette`.

  Raises:
    ValueError: a label is not within 0 to 255.
  """
  if label_map.size and not 0 <= label_map.min() <= label_map.max() <= 255:
    raise ValueError(
      f'Labels {label_map.min()} to {label_map.max()} do not fit into a PNG of '
      '8 bits; 0 to 255 do.'
    )
  image = Image.fromarray(label_map.astype(np.uint8))
  image.putpalette(palette().tobytes())
  return image


def blend(
  image: np.ndarray,
  mask: np.ndarray,
  color: np.ndarray,
  opacity: float = _OPACITY,
) -> np.ndarray:
  """(1 - opacity) * image + opacity * color where the mask is set.

  Args:
    image: uint8 [h, w, 3].
    mask: bool [h, w].
    color: RGB, [3] or of each pixel, [h, w, 3].
    opacity: Weight of the colour.

  Returns:
    uint8 [h, w, 3], rounded.
  """
  blended = (1 - opacity) * image + opacity * np.asarray(color, np.float32)
  return np.where(mask[..., None], np.round(blended), image).astype(np.uint8)


def draw_probabilities(
  image: np.ndarray,
  probabilities: np.ndarray,
  names: Sequence[str],
  count: int = 5,
) -> Image.Image:
  """The image, and beside it the likeliest classes with bars.

  Args:
    image: uint8 [h, w, 3].
    probabilities: [k], of the classes.
    names: k names.
    count: Most classes that are shown.
  """
  rows = _largest(probabilities, names)[:count]
  return _beside(Image.fromarray(_enlarged(image)), rows)


def draw_label_map(
  image: np.ndarray, label_map: np.ndarray, names: Sequence[str]
) -> Image.Image:
  """The image, in grey, under the colours of its labels, and a legend.

  The legend has the classes that the label map holds, with their shares of the
  pixels. Pixels of labels without a name, such as 255, show the image alone.

  Args:
    image: uint8 [h, w, 3].
    label_map: Labels, int [h, w].
    names: Name of each label.
  """
  image, label_map = _enlarged(image), _enlarged(label_map)
  known = (label_map >= 0) & (label_map < len(names))
  colors = palette()[label_map.astype(np.uint8)]
  # On grey the colours of classes do not mix with those of the image.
  grey = np.repeat(
    np.asarray(Image.fromarray(image).convert('L'))[..., None], 3, axis=2
  )
  labelled = blend(grey, known, colors)
  picture = Image.fromarray(np.where(known[..., None], labelled, image))
  shares = label_shares(label_map, len(names))
  rows = [row for row in _largest(shares, names) if row.share > 0]
  return _beside(picture, rows)


def label_shares(label_map: np.ndarray, num_classes: int) -> np.ndarray:
  """Share of the pixels that each label has, float [num_classes]."""
  counts = np.bincount(label_map.ravel(), minlength=num_classes)
  return counts[:num_classes] / max(1, label_map.size)


def draw_objects(
  image: np.ndarray,
  boxes: np.ndarray,
  labels: np.ndarray,
  names: Sequence[str],
  scores: np.ndarray | None = None,
  masks: np.ndarray | None = None,
) -> Image.Image:
  """The image with boxes, names, scores and masks in the colours of classes.

  Args:
    image: uint8 [h, w, 3].
    boxes: Corners [n, 4] in pixels of the image, those of the pixel at the
      origin being (0, 0, 1, 1); what is drawn last lies on top.
    labels: Classes, int [n].
    names: Name of each class.
    scores: Confidences in [0, 1], [n]; None: names alone.
    masks: bool [n, h, w]; None: boxes alone.
  """
  colors = palette()[1 + labels % 254]
  for color, mask in zip(colors, [] if masks is None else masks, strict=False):
    image = blend(image, mask, color)
  factor = _factor(image)
  picture = Image.fromarray(_enlarged(image))
  font = _font(picture)
  canvas = ImageDraw.Draw(picture)
  for i, box in enumerate(boxes):
    text = _shortened(names[labels[i]])
    if scores is not None:
      text += f' {100 * scores[i]:.0f} %'
    _draw_box(canvas, factor * np.asarray(box), text, colors[i], font)
  return picture


def _draw_box(canvas, box, text, color, font):
  """Outlines a box, with its text above it or, at the top, inside of it."""
  # The last pixels of the box are the line's.
  left, top, right, bottom = np.round(box).astype(int) - (0, 0, 1, 1)
  color = tuple(int(level) for level in color)
  width = max(1, font.size // 8)
  right, bottom = max(left, right), max(top, bottom)
  canvas.rectangle((left, top, right, bottom), outline=color, width=width)
  extent = canvas.textbbox((0, 0), text, font=font)
  height = extent[3] + 2
  base = top - height if top >= height else top
  plate = (left, base, left + extent[2] + 4, base + height)
  canvas.rectangle(plate, fill=color)
  ink = _PAPER if np.dot(color, (0.3, 0.59, 0.11)) < 140 else _TEXT
  canvas.text((left + 2, base), text, fill=ink, font=font)


def _largest(shares, names):
  """Rows by falling share; of equal ones the lower label first."""
  order = np.argsort(-np.asarray(shares), kind='stable')
  return [Row(int(i), names[i], float(shares[i])) for i in order]


def _beside(picture, rows):
  """A picture with a legend on its right."""
  font = _font(picture)
  unit = font.size
  left_out = len(rows) - _MOST_ROWS
  texts = [
    (row, f'{_shortened(row.name)}  {100 * row.share:.1f} %')
    for row in rows[:_MOST_ROWS]
  ]
  more = f'and {left_out} more' if left_out > 0 else ''
  bar = 10 * unit
  longest = max((font.getlength(text) for _, text in texts), default=0)
  width = int(max(bar, longest)) + 4 * unit
  height = 2 * unit + 2 * unit * len(texts) + (2 * unit if more else 0)
  size = (picture.width + width, max(picture.height, height))
  result = Image.new('RGB', size, _PAPER)
  result.paste(picture, (0, 0))
  canvas = ImageDraw.Draw(result)
  left, top = picture.width + unit, unit
  for row, text in texts:
    color = tuple(int(level) for level in palette()[row.label % 256])
    canvas.rectangle((left, top, left + unit, top + unit), fill=color)
    start = left + 3 * unit // 2
    canvas.text((start, top - unit // 8), text, fill=_TEXT, font=font)
    line = (start, top + 9 * unit // 8, start + bar, top + 11 * unit // 8)
    canvas.rectangle(line, fill=_SHADE)
    if row.share > 0:
      end = start + round(bar * min(1.0, row.share))
      canvas.rectangle((*line[:2], end, line[3]), fill=color)
    top += 2 * unit
  canvas.text((left, top), more, fill=_TEXT, font=font)
  return result


def _factor(image):
  """By how much a small image is enlarged, a whole number."""
  height, width = image.shape[:2]
  wanted = -(-_SHORTEST // min(height, width))
  return max(1, min(wanted, _LONGEST // max(height, width)))


def _enlarged(array):
  """An image or label map with pixels large enough to be seen."""
  factor = _factor(array)
  return array.repeat(factor, axis=0).repeat(factor, axis=1)


def _font(picture):
  return ImageFont.load_default(max(12, min(picture.size) // 24))


def _shortened(name):
  short = name[: _MOST_LETTERS - 1] + '…'
  return name if len(name) <= _MOST_LETTERS else short
