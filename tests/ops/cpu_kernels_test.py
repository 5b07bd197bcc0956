"""The kernels for CPU: their values, where they run, and over devices."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from acmix_jax.ops import local_attention, reference, shift_convolution

needs_kernels = pytest.mark.usefixtures('needs_kernels')


def normal(seed, *shape, dtype='float32'):
  values = np.random.default_rng(seed).standard_normal(shape)
  return jnp.asarray(values, dtype)


def attend(q, k, v, implementation='cpu_kernel', **options):
  return local_attention.local_attention(
    q, k, v, implementation=implementation, **options
  )


def convolve(
  maps, fc_kernel, depthwise_kernel, implementation='cpu_kernel', **options
):
  return shift_convolution.shift_convolution(
    maps, fc_kernel, depthwise_kernel, implementation=implementation, **options
  )


def layer(x, fc_kernel, depthwise_kernel, implementation='cpu_kernel'):
  """Both operations, as ACmix adds them."""
  maps = [x, 2 * x[:, :, :, ::-1], x + 1]
  convolved = convolve(maps, fc_kernel, depthwise_kernel, implementation)
  attended = attend(*maps, implementation, kernel_size=3)
  return jnp.sum((attended + convolved.reshape(x.shape)) ** 2)


def layer_inputs(images):
  return (
    normal(0, images, 5, 6, 2, 16),
    normal(1, 6, 9),
    0.1 * normal(2, 3, 3, 9, 32),
  )


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
  dout = normal(3, *out.shape)
  chex.assert_trees_all_close(
    [out, *pullback(dout)], [want, *want_pullback(dout)], atol=2e-5
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
  fc_kernel, depthwise_kernel = (
    normal(5, sum(counts), 9),
    0.1 * normal(6, 3, 5, 9, 48 * n),
  )
  out, pullback = jax.vjp(
    functools.partial(convolve, **options), maps, fc_kernel, depthwise_kernel
  )

  def exact(maps, fc_kernel, depthwise_kernel):
    return reference.shift_convolution(
      jnp.concatenate(maps, axis=3), fc_kernel, depthwise_kernel, **options
    )

  want, want_pullback = jax.vjp(exact, maps, fc_kernel, depthwise_kernel)
  dout = normal(7, *out.shape)
  chex.assert_trees_all_close(
    [out, pullback(dout)], [want, want_pullback(dout)], rtol=1e-4, atol=2e-3
  )


@needs_kernels
def test_results_do_not_depend_on_the_threads():
  inputs = layer_inputs(16)
  run = jax.jit(value_and_gradients)
  first = run(*inputs)
  for _ in range(20):
    chex.assert_trees_all_close(run(*inputs), first, rtol=0)


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
  chex.assert_trees_all_close(results, wanted, **SAME)


@needs_kernels
def test_sharded_images_without_a_mesh_in_context():
  inputs = layer_inputs(8)
  auto = (jax.sharding.AxisType.Auto,)
  mesh = jax.make_mesh((8,), ('data',), axis_types=auto)
  spec = jax.sharding.PartitionSpec('data')
  x = jax.device_put(inputs[0], jax.sharding.NamedSharding(mesh, spec))
  run = jax.jit(value_and_gradients)
  chex.assert_trees_all_close(run(x, *inputs[1:]), run(*inputs), **SAME)


@needs_kernels
@pytest.mark.parametrize('check', [True, False])
def test_a_caller_may_split_the_images(check):
  inputs = layer_inputs(8)
  implementation = 'auto' if check else 'cpu_kernel'
  run = functools.partial(layer, implementation=implementation)
  split = split_layer(run, check)
  chex.assert_trees_all_close(jax.jit(split)(*inputs), layer(*inputs), **SAME)
  # Results of the kernels would not vary, as jax would have to know.
  found = targets(split, *inputs)
  assert found == (0 if check else 2)


@needs_kernels
def test_kernels_refuse_what_varies():
  split = split_layer(layer, check=True)
  with pytest.raises(ValueError, match='check_vma=True'):
    jax.eval_shape(split, *layer_inputs(8))


def split_layer(run, check):
  auto = (jax.sharding.AxisType.Auto,)
  mesh = jax.make_mesh((8,), ('data',), axis_types=auto)
  spec = jax.sharding.PartitionSpec
  return jax.shard_map(
    lambda *inputs: jax.lax.psum(run(*inputs), 'data'),
    mesh=mesh,
    in_specs=(spec('data'), spec(), spec()),
    out_specs=spec(),
    check_vma=check,
  )


@needs_kernels
def test_vmap_is_a_loop():
  x, fc_kernel, depthwise_kernel = layer_inputs(6)
  xs = x.reshape(3, 2, *x.shape[1:])
  gradient = jax.grad(layer)
  results = jax.vmap(gradient, in_axes=(0, None, None))(
    xs, fc_kernel, depthwise_kernel
  )
  wanted = jnp.stack([gradient(x, fc_kernel, depthwise_kernel) for x in xs])
  chex.assert_trees_all_close(results, wanted, **SAME)


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
  fc_kernel = normal(1, 2, 9, dtype=dtype)
  depthwise_kernel = normal(2, 3, 3, 9, 2 * shape[-1], dtype=dtype)
  found = (
    targets(functools.partial(attend, implementation='auto'), x, x, x),
    targets(
      functools.partial(convolve, implementation='auto'),
      [x],
      fc_kernel,
      depthwise_kernel,
    ),
  )
  assert found == expected


def test_without_enable_the_forms_of_xla_serve():
  inputs = layer_inputs(1)
  run = functools.partial(layer, implementation='auto')
  assert targets(run, *inputs) == 0
  with pytest.raises(
    ValueError, match=r'enable\(\) has not been called. These'
  ):
    attend(*[inputs[0]] * 3)
  with pytest.raises(ValueError, match="These can: 'auto', 'pallas', 'chan"):
    convolve([inputs[0]] * 3, *inputs[1:])


def test_without_enable_layers_export_and_split():
  inputs = layer_inputs(8)
  run = functools.partial(layer, implementation='auto')
  gradient = jax.value_and_grad(run, (0, 1, 2))
  wanted = jax.jit(gradient)(*inputs)
  exported = jax.export.export(jax.jit(gradient), platforms=['cpu'])(*inputs)
  chex.assert_trees_all_close(exported.call(*inputs), wanted, **SAME)
  split = jax.value_and_grad(split_layer(run, check=True), (0, 1, 2))
  chex.assert_trees_all_close(jax.jit(split)(*inputs), wanted, **SAME)


def test_what_the_kernels_do_not_serve_is_named():
  x = normal(0, 1, 8, 8, 1, 4, dtype='bfloat16')
  with pytest.raises(
    ValueError, match='takes float32, not q, k, v of bfloat16'
  ):
    attend(x, x, x)
  x = x.astype('float32')
  with pytest.raises(ValueError, match='multiple of 16 channels a map, not 4'):
    convolve([x], normal(1, 1, 9), normal(2, 3, 3, 9, 4))
