"""Classes of the pixels of whole images, from the logits of windows.

As mmsegmentation 0.x: the logits of each window are resized to the window, the
windows averaged where they overlap, and the result resized to the image's own
size; then the probabilities of several views of an image are averaged. All
resizes are products with matrices, and the products of these take logits to an
image's own pixels at once: maps in between do not exist, and the probabilities
of the own pixels only in bands of rows.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int32, UInt8

from acmix_jax.ops import resize

# Probabilities, or one-hot labels, of an image that exist at a time, about.
_BAND_SIZE = 2**22

_EXACT = jax.lax.Precision.HIGHEST


@dataclasses.dataclass(frozen=True)
class Windows:
  """Windows along one axis of an image, all of one length.

  Attributes:
    starts: First pixel of each.
    length: Pixels of each.
    size: Pixels of the axis.
  """

  starts: tuple[int, ...]
  length: int
  size: int

  @classmethod
  def whole(cls, size: int) -> 'Windows':
    """One window as long as the axis."""
    return cls((0,), size, size)

  @classmethod
  def sliding(cls, size: int, length: int, stride: int) -> 'Windows':
    """Windows `stride` pixels apart; the last one ends with the axis.

    An axis shorter than a window is one window. Source: slide_inference of
    mmsegmentation's encoder_decoder.py.
    """
    length = min(length, size)
    count = -(-(size - length) // stride) + 1
    starts = (min(i * stride, size - length) for i in range(count))
    return cls(tuple(starts), length, size)

  def means(self, logits: int) -> Float32[np.ndarray, '_size _n']:
    """Matrix from the logits of all windows, in a row, to the axis's pixels.

    Args:
      logits: logits of one window along the axis.
    """
    in_window = resize.linear_matrix(logits, self.length)
    matrix = np.zeros((self.size, len(self.starts), logits))
    for i, start in enumerate(self.starts):
      matrix[start : start + self.length, i] = in_window
    matrix = matrix.reshape(self.size, -1)
    # The windows that cover a pixel have weights of the same sum, 1.
    return np.float32(matrix / matrix.sum(axis=1, keepdims=True))


@dataclasses.dataclass(frozen=True)
class View:
  """Logits of an image at one scale, perhaps mirrored.

  Attributes:
    logits: Logits of all windows side by side, float32 [b, m, n, k].
    rows: Matrix from their rows to those of the model's input, [H, m].
    columns: The same for their columns, [W, n].
    mirrored: Whether left and right are swapped.
  """

  logits: jax.Array
  rows: np.ndarray
  columns: np.ndarray
  mirrored: bool


def make_view(
  model: Callable[[jax.Array], jax.Array],
  images: Float[Array, 'b h w c'],
  windows: tuple[Windows, Windows],
  mirrored: bool = False,
) -> View:
  """Applies a model to windows of images, one window after the other.

  Args:
    model: maps images [b, h, w, c] to logits [b, m, n, k] of any size.
    images: normalised images.
    windows: those of the rows and those of the columns.
    mirrored: whether the model gets the images mirrored.
  """
  if mirrored:
    images = images[:, :, ::-1]
  rows, columns = windows
  crops = [
    images[:, top : top + rows.length, left : left + columns.length]
    for top in rows.starts
    for left in columns.starts
  ]
  if len(crops) == 1:
    logits = model(crops[0])[None]
  else:
    logits = jax.lax.map(model, jnp.stack(crops))
  _, batch, height, width, classes = logits.shape
  down, right = len(rows.starts), len(columns.starts)
  logits = logits.reshape(down, right, batch, height, width, classes)
  logits = logits.transpose(2, 0, 3, 1, 4, 5)
  return View(
    logits.reshape(batch, down * height, right * width, classes),
    rows.means(height),
    columns.means(width),
    mirrored,
  )


def class_maps(
  views: Sequence[View],
  sizes: Int32[Array, 'b 2'],
  canvas: tuple[int, int],
) -> Int32[Array, 'b h w']:
  """The class with the greatest mean probability, at each image's own size.

  Args:
    views: views of the same images.
    sizes: height and width of each image before it was resized.
    canvas: height and width of the result; what it holds beyond the size of an
      image means nothing.
  """
  height, width = canvas
  classes = views[0].logits.shape[-1]
  columns = [
    _own_pixels(
      view.columns, jnp.arange(width), sizes[:, 1], mirrored=view.mirrored
    )
    for view in views
  ]

  def classify(rows):
    probabilities = 0.0
    for view, to_columns in zip(views, columns, strict=True):
      to_rows = _own_pixels(view.rows, rows, sizes[:, 0])
      logits = jnp.einsum(
        'brm,bmnk->brnk', to_rows, view.logits, precision=_EXACT
      )
      logits = jnp.einsum(
        'bcn,brnk->brck', to_columns, logits, precision=_EXACT
      )
      probabilities += jax.nn.softmax(logits)
    return probabilities.argmax(axis=-1).astype(jnp.int32)

  rows = _in_bands(jnp.arange(height)[None], width * classes)
  bands = jax.lax.map(classify, rows[:, 0])
  return _joined(bands)[:, :height]


def _own_pixels(matrix, pixels, sizes, *, mirrored=False):
  """Matrices [b, p, n] from logits to some of the images' own pixels.

  Args:
    matrix: [s, n], from logits to the s pixels of the resized axis.
    pixels: [p], numbers of pixels on the axis.
    sizes: [b], pixels of the axis.
    mirrored: whether the resized axis runs the other way.
  """
  sizes = sizes[:, None]
  pixels = jnp.broadcast_to(pixels[None], (len(sizes), len(pixels)))
  if mirrored:
    pixels = sizes - 1 - pixels
  rows = resize.linear_rows(pixels, matrix.shape[0], sizes)
  return jnp.einsum('bps,sn->bpn', rows, matrix, precision=_EXACT)


def confusion_matrix(
  predicted: Int32[Array, 'b h w'],
  label_map: UInt8[Array, 'b h w'],
  num_classes: int,
) -> Int32[Array, '{num_classes} {num_classes}']:
  """Numbers of pixels by label (rows) and predicted class (columns).

  Pixels whose label is no class, as 255, do not count.
  """

  def count(band):
    one_hot = (
      jax.nn.one_hot(classes, num_classes, dtype=jnp.bfloat16)
      for classes in band
    )
    # Whole numbers are exact in float32 up to 2**24, and a band is smaller.
    counts = jnp.einsum(
      'brct,brcp->btp', *one_hot, preferred_element_type=jnp.float32
    )
    return counts.astype(jnp.int32)

  size = label_map.shape[2] * num_classes
  label_map = label_map.astype(jnp.int32)
  bands = (_in_bands(x, size) for x in (label_map, predicted))
  return jax.lax.map(count, tuple(bands)).sum(axis=(0, 1))


def _in_bands(x, size):
  """[b, h, ...] in bands of rows, [n, b, h / n, ...], of `size` numbers a row.

  The last band is filled up with -1.
  """
  height = x.shape[1]
  count = min(height, math.ceil(height * size / _BAND_SIZE))
  rows = -(-height // count)
  count = -(-height // rows)
  pads = [(0, 0)] * x.ndim
  pads[1] = (0, count * rows - height)
  x = jnp.pad(x, pads, constant_values=-1)
  return jnp.moveaxis(x.reshape(-1, count, rows, *x.shape[2:]), 1, 0)


def _joined(bands):
  """The inverse of `_in_bands`, with what fills the last band."""
  count, batch, rows, *rest = bands.shape
  return jnp.moveaxis(bands, 0, 1).reshape(batch, count * rows, *rest)
