"""Operations rewritten for XLA on CPU, each with what it gains there.

Elsewhere XLA computes the plain form well, and gets it. The gains were measured
with jax 0.10.2 on two cores.
"""

import functools
import itertools
import math

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Float32

from acmix_jax.ops import dense, windows, winograd

# Most features of a convolution at a time on CPU, and about as many values of
# its input and output together.
_FEATURES = 256
_VALUES = 2**21


def convolution(
  x: Float[Array, 'b h w c'], kernel: Float[Array, 'kh kw c f'], strides: int
) -> Float[Array, 'b ho wo f']:
  """Convolution with zeros around the map, as many as keep its size.

  On CPU a 1x1 kernel is a product: XLA computes the gradient of the kernel of
  a convolution with the whole map as the window, which takes two to five times
  as long. Larger kernels are applied to a few images and 256 features at a
  time, beyond which that gradient leaves the cache: those of 512 features for
  64x64x2048 and 64x64x512 took 60 % of the time, of 256 maps of 14x14x256 half.
  Where `winograd.pays`, a 3x3 kernel has 4/9 of the products: an update of
  retinanet:resnet50 went from 2,290 to 2,050 ms (2 images of 320x416 px).

  Args:
    x: Map.
    kernel: Weights; both sides are odd.
    strides: Pixels between outputs.
  """
  count = _parts(x.shape, kernel.shape[3], strides)
  convolve = functools.partial(
    lax.conv_general_dilated,
    window_strides=(strides, strides),
    padding=windows.same_padding(kernel.shape[:2]),
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )

  def multiply(x, kernel):
    return dense.dense(x[:, ::strides, ::strides], kernel[0, 0])

  def in_parts(x, kernel):
    ends = [*range(_FEATURES, kernel.shape[3], _FEATURES)]
    kernels = jnp.split(kernel, ends, axis=3)
    # Every n-th image: a part has as many of each device.
    parts = x.reshape(-1, count, *x.shape[1:])
    outs = [
      jnp.concatenate([convolve(parts[:, i], k) for k in kernels], axis=3)
      for i in range(count)
    ]
    return jnp.stack(outs, axis=1).reshape(-1, *outs[0].shape[1:])

  if kernel.shape[:2] == (1, 1):
    on_cpu = multiply
  elif strides == 1 and winograd.pays(x, kernel):
    on_cpu = functools.partial(winograd.convolution, in_parts)
  elif count > 1 or kernel.shape[3] > _FEATURES:
    on_cpu = in_parts
  else:
    return convolve(x, kernel)
  return lax.platform_dependent(x, kernel, cpu=on_cpu, default=convolve)


def _parts(shape, features, strides):
  """Parts of equally many images that a convolution of x is made in."""
  images, height, width, channels = shape
  # A program for any number of images has a symbol for it.
  if not isinstance(images, int):
    return 1
  outputs = math.prod(windows.output_size(n, strides) for n in (height, width))
  values = images * (height * width * channels + outputs * features)
  return next(
    n
    for n in range(1, images + 1)
    if images % n == 0 and (values <= n * _VALUES or n == images)
  )


def max_pool(
  x: Float[Array, 'b h w c'], size: int, padding: int = 0
) -> Float[Array, 'b ho wo c']:
  """The largest pixel of each window, at every second row and column.

  The gradient goes to the first of equals, as in PyTorch. On CPU the positions
  of a window are compared map by map: XLA finds the places of the maxima for
  the gradient with maps of indices, which takes eight times as long.

  Args:
    x: Map.
    size: Side of a window.
    padding: Pixels added to each side, which are never the largest.

  Returns:
    The maxima: ho = (h + 2 * padding - size) // 2 + 1, wo likewise.
  """
  pads = ((0, 0), (padding, padding), (padding, padding), (0, 0))

  def compare(x):
    x = jnp.pad(x, pads, constant_values=-jnp.inf)
    rows, columns = (
      windows.output_size(side - size + 1, 2) for side in x.shape[1:3]
    )
    largest = jnp.full((), -jnp.inf, x.dtype)
    for i, j in itertools.product(range(size), repeat=2):
      y = x[:, i : i + 2 * rows - 1 : 2, j : j + 2 * columns - 1 : 2]
      largest = jnp.where((y > largest) | jnp.isnan(y), y, largest)
    return largest

  def pool(x):
    return lax.reduce_window(
      x,
      -jnp.inf,
      lax.max,
      window_dimensions=(1, size, size, 1),
      window_strides=(1, 2, 2, 1),
      padding=pads,
    )

  return lax.platform_dependent(x, cpu=compare, default=pool)


def add_to_each(
  x: Float[Array, 'b *pixels c'], y: Float[Array | np.ndarray, '*pixels c']
) -> Float[Array, 'b *pixels c']:
  """Adds y to each image of x.

  The gradient of y is a product with ones: XLA on CPU takes about 30 times as
  long to sum a few images. Elsewhere it knows the product for a sum.
  """
  ones = jnp.ones(x.shape[0], x.dtype)
  # 'highest', as a sum would be: a TPU rounds the factors of a product.
  return x + jnp.einsum('b,...->b...', ones, y, precision='highest')


def multiply_axis(
  matrix: Float[Array, 'n m'],
  x: Float[Array, '...'],
  axis: int,
  precision: lax.PrecisionLike = 'highest',
) -> Float[Array, '...']:
  """Product of a matrix with each line of x along an axis.

  On CPU it is a product of the matrix with each of many matrices, none of which
  is transposed: XLA would compute the plain product with its axis first and
  transpose the result. A map of 32x32x512 was doubled in a tenth of the time.

  Args:
    matrix: Weights.
    x: Lines.
    axis: Of x.
    precision: Of the products; a TPU rounds the factors to bfloat16 by default.
  """

  def one_by_one(matrix, x):
    lines = x.reshape(math.prod(x.shape[:axis]), x.shape[axis], -1)
    matrices = jnp.broadcast_to(matrix, (lines.shape[0], *matrix.shape))
    y = jnp.matmul(matrices, lines, precision=precision)
    return y.reshape(*x.shape[:axis], -1, *x.shape[axis + 1 :])

  def plain(matrix, x):
    y = jnp.tensordot(matrix, x, (1, axis), precision=precision)
    return jnp.moveaxis(y, 0, axis)

  return lax.platform_dependent(matrix, x, cpu=one_by_one, default=plain)


def zeros(x: Float[Array, '*shape']) -> Float32[Array, '*shape']:
  """Float32 zeros of the shape of x that XLA cannot constant-fold.

  XLA on CPU makes the constant zeros of all loops of a program when it starts,
  and copies them for each loop: all are in memory together. Made from x, those
  of a resnet26_acmix update left 377 of 404 MiB of temporary memory, and the
  layer at 56x56x64 took 128 ms where it had taken 140 to 155.
  They vary over the devices of a `jax.shard_map` as x does.
  """
  x = x.astype(jnp.float32)
  return jnp.where(x > jnp.inf, x, 0)


def zero(*arrays: Float[Array, '...']) -> Float32[Array, '']:
  """One of `zeros`, for what all these arrays go into."""
  return zeros(sum(x[(0,) * x.ndim] for x in arrays))
