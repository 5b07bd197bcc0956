"""The kernels for CPU: where they run, over devices, and without a compiler."""

import functools
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from acmix_jax.cpu_kernels import library
from acmix_jax.ops import local_attention, reference, shift_convolution

needs_kernels = pytest.mark.skipif(
  bool(library.missing()), reason=library.missing()
)


def normal(seed, *shape, dtype='float32'):
  values = np.random.default_rng(seed).standard_normal(shape)
  return jnp.asarray(values, dtype)


def attend(q, k, v, implementation='cpu_kernel', **options):
  return local_attention.local_attention(
    q, k, v, implementation=implementation, **options
  )


def convolve(maps, mixing, kernel, implementation='cpu_kernel', **options):
  return shift_convolution.shift_convolution(
    maps, mixing, kernel, implementation=implementation, **options
  )


def layer(x, mixing, kernel):
  """Both operations, as ACmix adds them."""
  maps = [x, 2 * x[:, :, :, ::-1], x + 1]
  convolved = convolve(maps, mixing, kernel).reshape(x.shape)
  return jnp.sum((attend(*maps, kernel_size=3) + convolved) ** 2)


def layer_inputs(images):
  return (
    normal(0, images, 5, 6, 2, 16),
    normal(1, 6, 9),
    0.1 * normal(2, 3, 3, 9, 32),
  )


def assert_close(results, wanted, **tolerance):
  for result, want in zip(
    *map(jax.tree.leaves, (results, wanted)), strict=True
  ):
    np.testing.assert_allclose(result, want, **tolerance)


value_and_gradients = jax.value_and_grad(layer, (0, 1, 2))
SAME = {'rtol': 1e-4, 'atol': 1e-3}


@needs_kernels
@pytest.mark.parametrize(
  ('shape', 'options'),
  [
    # Rows of many vectors, of one and of parts of one; groups of heads.
    ((1, 8, 67, 1, 9), {}),
    ((2, 9, 23, 6, 17), {}),
    ((1, 14, 14, 4, 3), {'kernel_size': 9, 'strides': 2}),
    ((1, 20, 41, 5, 2), {'kernel_size': 5, 'strides': 3, 'dilation': 2}),
  ],
)
def test_attention_over_rows_of_several_vectors(shape, options):
  q, k, v = (normal(i, *shape) for i in range(3))
  out, pullback = jax.vjp(
    functools.partial(attend, implementation='cpu_kernel', **options), q, k, v
  )
  want, want_pullback = jax.vjp(
    functools.partial(reference.local_attention, **options), q, k, v
  )
  to_out = normal(3, *out.shape)
  assert_close(
    [out, *pullback(to_out)], [want, *want_pullback(to_out)], atol=2e-5
  )


@needs_kernels
@pytest.mark.parametrize(
  ('counts', 'n', 'options'),
  [
    # Blocks of maps that are whole, and what is left of them.
    ((9, 3, 6), 5, {}),
    ((24,), 8, {'strides': 2}),
    ((1, 2, 1), 1, {'dilation': 2, 'strides': 3}),
  ],
)
def test_convolution_of_several_blocks_of_maps(counts, n, options):
  maps = [normal(i, 2, 10, 15, m, 48) for i, m in enumerate(counts)]
  mixing, kernel = normal(5, sum(counts), 9), 0.1 * normal(6, 3, 5, 9, 48 * n)
  out, pullback = jax.vjp(
    functools.partial(convolve, **options), maps, mixing, kernel
  )

  def exact(maps, mixing, kernel):
    return reference.shift_convolution(
      jnp.concatenate(maps, axis=3), mixing, kernel, **options
    )

  want, want_pullback = jax.vjp(exact, maps, mixing, kernel)
  to_out = normal(7, *out.shape)
  assert_close(
    [out, pullback(to_out)], [want, want_pullback(to_out)], rtol=1e-4, atol=2e-3
  )


@needs_kernels
def test_results_do_not_depend_on_the_threads():
  inputs = layer_inputs(16)
  run = jax.jit(value_and_gradients)
  first = run(*inputs)
  for _ in range(20):
    assert_close(run(*inputs), first, rtol=0)


@needs_kernels
@pytest.mark.parametrize(('images', 'split'), [(8, True), (6, False)])
def test_devices_share_the_images(images, split):
  inputs = layer_inputs(images)
  wanted = jax.jit(value_and_gradients)(*inputs)
  auto = (jax.sharding.AxisType.Auto,) * 2
  mesh = jax.make_mesh((4, 2), ('data', 'model'), axis_types=auto)
  spec = jax.sharding.PartitionSpec(('data', 'model') if split else None)
  x = jax.device_put(inputs[0], jax.sharding.NamedSharding(mesh, spec))
  with jax.set_mesh(mesh):
    compiled = jax.jit(value_and_gradients).lower(x, *inputs[1:]).compile()
  assert 'all-gather' not in compiled.as_text()
  results = compiled(x, *inputs[1:])
  assert results[1][0].sharding.is_equivalent_to(x.sharding, x.ndim)
  assert_close(results, wanted, **SAME)


@needs_kernels
def test_sharded_images_without_a_mesh_in_context():
  inputs = layer_inputs(8)
  auto = (jax.sharding.AxisType.Auto,)
  mesh = jax.make_mesh((8,), ('data',), axis_types=auto)
  spec = jax.sharding.PartitionSpec('data')
  x = jax.device_put(inputs[0], jax.sharding.NamedSharding(mesh, spec))
  run = jax.jit(value_and_gradients)
  assert_close(run(x, *inputs[1:]), run(*inputs), **SAME)


@needs_kernels
@pytest.mark.parametrize('check', [True, False])
def test_a_caller_may_split_the_images(check):
  inputs = layer_inputs(8)
  auto = (jax.sharding.AxisType.Auto,)
  mesh = jax.make_mesh((8,), ('data',), axis_types=auto)
  spec = jax.sharding.PartitionSpec

  def run(*inputs):
    return jax.lax.psum(layer(*inputs), 'data')

  split = jax.shard_map(
    run,
    mesh=mesh,
    in_specs=(spec('data'), spec(), spec()),
    out_specs=spec(),
    check_vma=check,
  )
  if check:
    with pytest.raises(ValueError, match='check_vma=False'):
      jax.eval_shape(split, *inputs)
  else:
    assert_close(jax.jit(split)(*inputs), layer(*inputs), **SAME)


@needs_kernels
def test_vmap_is_a_loop():
  x, mixing, kernel = layer_inputs(6)
  xs = x.reshape(3, 2, *x.shape[1:])
  gradient = jax.grad(layer)
  results = jax.vmap(gradient, in_axes=(0, None, None))(xs, mixing, kernel)
  wanted = jnp.stack([gradient(x, mixing, kernel) for x in xs])
  assert_close(results, wanted, **SAME)


def targets(function, *args):
  return jax.jit(function).lower(*args).as_text().count('@acmix_jax.')


@needs_kernels
@pytest.mark.parametrize(
  ('shape', 'dtype', 'expected'),
  [
    ((1, 8, 9, 2, 16), 'float32', (1, 1)),
    ((1, 7, 9, 2, 16), 'float32', (0, 1)),
    ((1, 8, 9, 2, 8), 'float32', (1, 0)),
    ((1, 8, 9, 2, 16), 'bfloat16', (0, 0)),
  ],
)
def test_auto_takes_the_kernels_where_they_serve(shape, dtype, expected):
  x = normal(0, *shape, dtype=dtype)
  mixing = normal(1, 2, 9, dtype=dtype)
  kernel = normal(2, 3, 3, 9, 2 * shape[-1], dtype=dtype)
  found = (
    targets(functools.partial(attend, implementation='auto'), x, x, x),
    targets(
      functools.partial(convolve, implementation='auto'), [x], mixing, kernel
    ),
  )
  assert found == expected


def test_auto_needs_no_compiler(monkeypatch):
  monkeypatch.setattr(library, 'missing', lambda: 'there is no compiler.')
  x, mixing, kernel = layer_inputs(1)
  np.testing.assert_allclose(
    attend(x, x, x, 'auto', kernel_size=3),
    attend(x, x, x, 'patches', kernel_size=3),
    atol=1e-5,
  )
  np.testing.assert_allclose(
    convolve([x, x, x], mixing, kernel, 'auto'),
    convolve([x, x, x], mixing, kernel, 'shifts'),
    atol=1e-4,
  )
  with pytest.raises(ValueError, match="no compiler. 'auto' and 'tiles'"):
    attend(x, x, x)
  with pytest.raises(ValueError, match="no compiler. 'auto' and 'channels'"):
    convolve([x, x, x], mixing, kernel)


def test_what_the_kernels_do_not_serve_is_named():
  x = normal(0, 1, 8, 8, 1, 4, dtype='bfloat16')
  with pytest.raises(ValueError, match='float32, not bfloat16 maps'):
    attend(x, x, x)
  x = x.astype('float32')
  with pytest.raises(ValueError, match='multiple of 16 channels.* with 4'):
    convolve([x], normal(1, 1, 9), normal(2, 3, 3, 9, 4))


def write_compiler(path, script):
  path.write_text(f'#!/bin/sh\n{script}\n')
  path.chmod(0o755)
  return str(path)


@pytest.mark.parametrize(
  ('script', 'reason'),
  [
    ('echo "no such header" >&2; exit 1', 'no such header'),
    (None, 'No such file'),
    ('"', 'No closing quotation'),
  ],
)
def test_a_compiler_that_fails_is_said_why(
  monkeypatch, tmp_path, caplog, script, reason
):
  compiler = tmp_path / 'compiler'
  if script == '"':
    compiler = script
  elif script:
    write_compiler(compiler, script)
  monkeypatch.setenv('CXX', str(compiler))
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  assert reason in library.missing.__wrapped__()
  assert reason in caplog.text


def test_the_library_is_compiled_once(monkeypatch, tmp_path):
  compiler = write_compiler(
    tmp_path / 'compiler',
    'echo run >> "$(dirname "$0")/runs"; for last; do :; done; '
    'case "$last" in --version) ;; *) echo library > "$last" ;; esac',
  )
  monkeypatch.setenv('CXX', compiler)
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  built = library._build()
  assert built.read_text() == 'library\n'
  assert library._build() == built
  # It was asked for its version each time, and compiled at the first.
  assert (tmp_path / 'runs').read_text().count('run') == 3
  assert list(built.parent.iterdir()) == [built]
  monkeypatch.setenv('CXX', f'{compiler} -mno-avx')
  assert library._build() != built


def test_a_cache_that_cannot_be_written_is_replaced(monkeypatch, tmp_path):
  (tmp_path / 'file').touch()
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
  monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
  folder = library._cache()
  assert folder.parent == tmp_path
  assert folder.stat().st_mode & 0o077 == 0
