"""Padding to the canvas that the examples of a batch share."""

import dataclasses

import numpy as np

from acmix_jax.data.transforms import transform
from acmix_jax.data.transforms.transform import Example


@dataclasses.dataclass(frozen=True)
class Pad:
  """Pads at the right and the bottom to the canvas of the example.

  The number of the canvas, `canvas` (not needed for one), leaves the example;
  `size`, int32 [2], comes in: the height and width of the image on the canvas.
  Boxes, and masks that are not drawn yet, stay as they are, since the origin
  does.

  Attributes:
    canvases: height and width of each canvas, in pixels.
    color: RGB of the pixels outside the image.
    ignored_label: label of the pixels outside the image.

  Raises:
    ValueError: a field is out of range; or, when called, the image is larger
      than its canvas, or the example holds an array of other name.
  """

  canvases: tuple[tuple[int, int], ...]
  color: tuple[int, int, int] = (0, 0, 0)
  ignored_label: int = 255

  def __post_init__(self):
    if not self.canvases:
      raise transform.FieldError('canvases', self.canvases, 'is empty.')
    for canvas in self.canvases:
      transform.check_pair('canvases', canvas, '(height, width)')

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    del rng
    pad = {
      'image': (0, self.color),
      'label_map': (0, self.ignored_label),
      'masks': (1, 0),
    }
    transform.check_arrays(self, example, (*pad, 'boxes'))
    number = example['canvas'] if len(self.canvases) > 1 else 0
    canvas, size = self.canvases[number], example['image'].shape[:2]
    if size[0] > canvas[0] or size[1] > canvas[1]:
      raise ValueError(
        f'Pad: the image of {size[0]}x{size[1]} is larger than its canvas '
        f'{number} of {canvas[0]}x{canvas[1]}.'
      )
    padded = {key: value for key, value in example.items() if key != 'canvas'}
    for key, (axis, fill) in pad.items():
      if isinstance(example.get(key), np.ndarray):
        padded[key] = _pad(example[key], axis, canvas, fill)
    return padded | {'size': np.array(size, np.int32)}


def _pad(array, axis, canvas, fill):
  """Pads two axes of an array, from `axis` on."""
  height, width = array.shape[axis : axis + 2]
  if (height, width) == canvas:
    return array
  shape = (*array.shape[:axis], *canvas, *array.shape[axis + 2 :])
  padded = np.empty(shape, array.dtype)
  leading = (slice(None),) * axis
  padded[(*leading, slice(height), slice(width))] = array
  padded[(*leading, slice(height, None))] = fill
  padded[(*leading, slice(height), slice(width, None))] = fill
  return padded
