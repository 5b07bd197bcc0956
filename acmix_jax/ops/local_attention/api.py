"""Attention of each pixel over the window around it, reflected at borders.

Exact implementations behind `local_attention`:
  patches: copies the window of each query (k*k times the memory of k and v).
  tiles: a square of queries shares the square of keys that its windows cover;
    one tile after the other, so that only one is in memory.
  pallas: one fused kernel for TPU, another for GPU; the logits stay on chip.
  cpu_kernel: a fused kernel for CPU, compiled from C++ on the machine.
  auto: see `local_attention`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from acmix_jax.cpu_kernels import library
from acmix_jax.ops import cost_marks, windows
from acmix_jax.ops.local_attention import cpu, pallas, tiles


def local_attention(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  position: jax.Array | None = None,
  *,
  kernel_size: int = 7,
  strides: int = 1,
  dilation: int = 1,
  implementation: str = 'auto',
) -> jax.Array:
  """Softmax attention over a window of each pixel (paper eq. 1, 2).

  logits = d**-0.5 * q . (k + position[query] - position[key]), softmax over
  the kernel_size**2 keys in float32, then the weighted sum of v. Keys, values
  and positions beyond the border are those of the mirrored pixel.

  Source: LeapLabTHU/ACmix ResNet/test_bottleneck.py. Differs: NHWC; any float
  dtype; odd maps at stride 2 give ceil(h / 2) rows (the source fails); the
  dilation spaces the keys (the source ignores it in the window and fails).

  Args:
    q: queries [b, h, w, n, d], not scaled; every `strides`-th pixel is used.
    k: keys [b, h, w, n, d].
    v: values [b, h, w, n, d].
    position: encoding of each pixel [h, w, d], shared by images and heads.
    kernel_size: odd side of the window in keys.
    strides: pixels between queries.
    dilation: pixels between neighbouring keys of a window.
    implementation: a name of `IMPLEMENTATIONS`. 'auto' takes the kernel on
      TPU wherever `pallas.supports` says that it serves the
      shape, that on CPU for float32 maps larger than the window if there is a
      C++ compiler, and tiles elsewhere, with the same numbers. The GPU kernel
      is tested but has not run on a GPU yet, so it has to be asked for by
      'pallas'; 'patches' is there to compare with. `jax.export` for CPU
      needs 'tiles' to be asked for: 'cpu_kernel' is of this machine's library.

  Returns:
    [b, ceil(h / strides), ceil(w / strides), n, d] in the dtype of v.

  Raises:
    ValueError: shapes that disagree, a window that is not centred, a map too
      small to reflect, or an unknown implementation.
  """
  _check(q, k, v, position, kernel_size, strides, dilation, implementation)
  if position is not None:
    # q . position[query] is the same for all keys of a window, so it leaves
    # the softmax unchanged: only the key's side of the term is needed.
    k = k - position[None, :, :, None].astype(k.dtype)
  # The keys are new by now, so scaling them, not q, needs no further memory.
  k = k * k.shape[-1] ** -0.5
  attend = IMPLEMENTATIONS[implementation]
  return attend(
    q[:, ::strides, ::strides], k, v, kernel_size, strides, dilation
  )


def _check(q, k, v, position, kernel_size, strides, dilation, implementation):
  name = 'local_attention'
  if q.ndim != 5 or not q.shape == k.shape == v.shape:
    raise ValueError(
      f'{name}: q {q.shape}, k {k.shape}, v {v.shape}; three equal shapes '
      '[b, h, w, n, d] are needed.'
    )
  h, w, d = q.shape[1], q.shape[2], q.shape[4]
  if position is not None and position.shape != (h, w, d):
    raise ValueError(
      f'{name}: position {position.shape}; [h, w, d] = {(h, w, d)} is needed.'
    )
  windows.check_window(name, kernel_size, strides, dilation)
  windows.check_reflection(name, h, w, kernel_size, dilation)
  if implementation not in IMPLEMENTATIONS:
    raise ValueError(
      f'{name}: no implementation {implementation!r}; known: '
      f'{", ".join(IMPLEMENTATIONS)}.'
    )


def _patches(q, k, v, kernel_size, strides, dilation):
  b, h, w, n, d = q.shape
  pad = windows.padding(kernel_size, dilation)

  def unfold(x):
    x = x.reshape(*x.shape[:3], n * d)
    with jax.named_scope(cost_marks.COPY):
      x = lax.conv_general_dilated_patches(
        windows.reflect(x, pad),
        filter_shape=(kernel_size, kernel_size),
        window_strides=(strides, strides),
        padding='VALID',
        rhs_dilation=(dilation, dilation),
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
      )
    return x.reshape(b, h, w, n, d, kernel_size**2)

  logits = jnp.einsum(
    'bhwnd,bhwndt->bhwnt', q, unfold(k), preferred_element_type=jnp.float32
  )
  weights = jax.nn.softmax(logits).astype(v.dtype)
  return jnp.einsum('bhwnt,bhwndt->bhwnd', weights, unfold(v))


def _auto(q, k, v, *window):
  kernels = {}
  if pallas.supports(q, k, *window, platform='tpu'):
    kernels['tpu'] = lambda *maps: pallas.attend(*maps, *window)
  kernel_size, _, dilation = window
  # Where the window is larger, tiles see the whole map in dense products.
  larger = min(k.shape[1:3]) > (kernel_size - 1) * dilation + 1
  serves = larger and cpu.supports(q, k, v)
  if serves and not library.missing():
    kernels['cpu'] = lambda *maps: cpu.attend(*maps, *window)
  return lax.platform_dependent(
    *(q, k, v),
    default=lambda *maps: tiles.attend(*maps, *window),
    **kernels,
  )


def _pallas(q, k, v, *window):
  platforms = ('tpu', 'cuda')
  if not any(
    pallas.supports(q, k, *window, platform=platform) for platform in platforms
  ):
    raise ValueError(
      f'local_attention: no kernel serves {k.dtype} maps of {k.shape[1:3]} '
      f"with {k.shape[3]} heads of {k.shape[4]}; 'auto' and 'tiles' do."
    )
  return pallas.attend(q, k, v, *window)


def _cpu_kernel(q, k, v, *window):
  if not cpu.supports(q, k, v):
    raise ValueError(
      f"local_attention: 'cpu_kernel' serves float32, not {k.dtype} maps; "
      "'auto' and 'tiles' do."
    )
  library.check('local_attention', "'auto' and 'tiles'")
  return cpu.attend(q, k, v, *window)


IMPLEMENTATIONS: dict[str, Callable[..., jax.Array]] = {
  'auto': _auto,
  'patches': _patches,
  'tiles': tiles.attend,
  'pallas': _pallas,
  'cpu_kernel': _cpu_kernel,
}
