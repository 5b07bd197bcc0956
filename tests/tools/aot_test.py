"""The compiler's reading of a program, and the tool around it."""

import importlib.util
import json
import pathlib

import jax
import jax.numpy as jnp
import ml_collections
import pytest

from acmix_jax.tools.aot import __main__ as aot
from acmix_jax.tools.aot import compilation, hlo, roofline
from acmix_jax.train import mesh as mesh_lib
from configs import digits_acmix

ROOT = pathlib.Path(__file__).parents[2]
DIGITS = str(ROOT / 'configs' / 'digits_acmix.py')

needs_compiler = pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None,
  reason="the TPU compiler is not installed: pip install 'jax[tpu]'",
)

# A loop of 5 turns, each with a product, an exchange, and one row of ten read
# and written; `b` is on chip. A row takes 8 x 128 numbers with its padding.
PROGRAM = ROOT / 'tests' / 'fixtures' / 'update.hlo'
ROW = 8 * 128 * 4


def test_a_program_is_counted_with_its_loops_padding_and_slices():
  program = hlo.Program(PROGRAM.read_text())
  assert program.loops == [5]
  gather, kernel, convert = (10 + 20) * ROW, 1000, 10 * ROW * 3 // 2
  assert program.moved_bytes() == 5 * 2 * ROW + gather + kernel + convert
  assert program.flops_of_repetition() == 4 * 2 * 8 * 16 * 32
  assert program.recomputed() == 1
  assert program.collectives() == {
    'all-reduce': hlo.Collective(5, 5 * 8 * 128 * 4),
    'all-gather': hlo.Collective(1, 20 * ROW),
  }


def test_operations_are_named_by_their_modules():
  program = hlo.Program(PROGRAM.read_text())
  operations = program.operations()
  assert sum(x.bytes for x in operations) == program.moved_bytes()
  by_kind = {x.kind: x for x in operations}
  product = by_kind['convolution, backward']
  assert product.module == 'stage1_0/operator/query/dot_general'
  assert (product.count, product.flops) == (5, 5 * 2 * 8 * 16 * 32)
  assert by_kind['custom-call'].bytes == 1000


@pytest.mark.parametrize('strides, groups', [(1, 1), (2, 1), (1, 4)])
def test_convolutions_in_a_loop_are_counted_without_padding(strides, groups):
  def convolve(x, kernel):
    return jax.lax.conv_general_dilated(
      x,
      kernel,
      (strides, strides),
      'SAME',
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
      feature_group_count=groups,
    )

  def gradients(x, kernel):
    out, pullback = jax.vjp(convolve, x, kernel)
    return pullback(out)

  def turns(x, kernel):
    return jax.lax.fori_loop(
      0, 6, lambda _, args: gradients(*args), (x, kernel)
    )

  x = jax.ShapeDtypeStruct((2, 7, 7, 32), jnp.float32)
  kernel = jax.ShapeDtypeStruct((5, 5, 32 // groups, 32), jnp.float32)
  once, loop = (
    jax.jit(function).lower(x, kernel).compile()
    for function in (gradients, turns)
  )
  program = hlo.Program(loop.as_text())
  assert program.loops == [6]
  assert program.flops_of_repetition() == pytest.approx(
    5 * once.cost_analysis()['flops'], rel=0.01
  )


def test_one_turn_of_an_open_loop_is_told():
  def products(count, x):
    def inner(_, x):
      return jax.lax.fori_loop(0, count, lambda _, x: x @ x, x)

    x = jax.lax.fori_loop(0, 3, inner, x)
    return jax.lax.fori_loop(0, count, lambda _, x: (x @ x) @ x, x)

  x = jax.ShapeDtypeStruct((8, 8), jnp.float32)
  count = jax.ShapeDtypeStruct((), jnp.int32)
  compiled = jax.jit(products).lower(count, x).compile()
  program = hlo.Program(compiled.as_text())
  assert sorted(program.loops, key=str) == [3, None, None]
  found = program.open_loops()
  assert sorted(x.flops for x in found) == [2 * 8**3, 4 * 8**3]
  assert all(x.bytes >= 2 * 8 * 8 * 4 and x.kind == 'while' for x in found)


def test_exchanges_of_a_compiled_update_are_found():
  mesh = mesh_lib.make_mesh(ml_collections.ConfigDict({'data': -1, 'model': 1}))
  split, whole = mesh_lib.batch_sharding(mesh), mesh_lib.replicated(mesh)
  means = jax.jit(lambda x: x.mean(0), in_shardings=split, out_shardings=whole)
  compiled = means.lower(jax.ShapeDtypeStruct((16, 24), jnp.float32)).compile()
  found = hlo.Program(compiled.as_text()).collectives()
  assert found == {'all-reduce': hlo.Collective(1, 24 * 4)}


def _config():
  config = digits_acmix.get_config()
  config.model.convolution_implementation = 'grouped'
  return config.lock()


def test_the_update_is_lowered_for_given_devices_without_data():
  config = _config()
  config.data.name, config.data.dir = 'folder', '/nowhere'
  training = compilation.make_training(config, jax.devices()[2:6])
  (canvas,) = training.task.batch_shapes('train')
  lowered = compilation.lower_update(training, canvas)
  state, metrics = lowered.out_info
  assert set(metrics) == {'loss', 'grad_norm', 'top1', 'top5'}
  (given, batch), _ = lowered.args_info
  assert jax.tree.map(lambda x: x.shape, given) == jax.tree.map(
    lambda x: x.shape, state
  )
  assert batch['image'].shape == (64, 8, 8, 3)
  config.train.batch_size = 6
  with pytest.raises(ValueError, match='nearest that works: 4 or 8'):
    compilation.make_training(config, jax.devices()[2:6])


def test_advice_names_fields_that_may_still_change():
  config = _config()
  mesh = mesh_lib.make_mesh(config.mesh, jax.devices()[:4])
  fields = [line.partition(':')[0] for line in compilation.advise(config, mesh)]
  assert fields == [
    '--config.model.dtype=bfloat16',
    '--config.model.remat=products',
    '--config.model.remat=block',
    '--config.train.accumulate_steps=2',
    '--config.mesh.model=2',
    '--config.train.batch_size=32',
  ]
  config.model.dtype, config.model.remat = 'bfloat16', 'block'
  config.mesh.model, config.train.batch_size = 4, 4
  mesh = mesh_lib.make_mesh(config.mesh, jax.devices()[:4])
  assert compilation.advise(config, mesh) == []


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['configs/nothing.py'], 'configs/nothing.py'),
    (
      [DIGITS, '--config.train.bach_size=3'],
      'Did you mean "batch_size"',
    ),
    ([DIGITS, '--batch=3'], "flag 'batch'"),
  ],
)
def test_a_wrong_call_is_answered(arguments, message, capsys):
  assert aot.main([*arguments, '--topology=v5e:2x2']) == 2
  assert message in capsys.readouterr().err


def test_a_missing_compiler_is_named(monkeypatch, capsys):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  assert aot.main([DIGITS, '--topology=v5e:2x2']) == 2
  assert "pip install 'jax[tpu]'" in capsys.readouterr().err


def test_the_report_names_the_canvas():
  report = roofline.Report(
    model='resnet50',
    topology='v5e:2x2',
    mesh={'data': 4, 'model': 1},
    chip=roofline.CHIPS['TPU v5 lite'],
    batch={'image': (64, 256, 192, 3), 'label': (64,)},
    images=16,
    memory=None,
    needed=17 * 2**30,
    fits=False,
    flops=0,
    moved_bytes=0,
    recomputed=0,
    loops=[hlo.Operation('nms', 'while', 1, 0, 0)] * 3,
    collectives={},
    compile_seconds=1.0,
    advice=[],
  )
  text = roofline.as_text(report)
  assert 'batch        image 64x256x192x3, label 64\n' in text
  assert 'DOES NOT FIT 17.00 GiB of 15.75 GiB' in text
  assert 'loops        3 whose length the data decide' in text


def test_the_report_says_what_share_of_its_bound_was_reached():
  chip = roofline.CHIPS['TPU v4']
  report = roofline.Report(
    model='resnet50',
    topology='v4:2x2x2',
    mesh={'data': 8, 'model': 1},
    chip=chip,
    batch={'image': (16, 8, 8, 3)},
    images=100,
    memory=roofline.Memory(0, 0, 0, 0),
    needed=0,
    fits=True,
    flops=0,
    moved_bytes=round(chip.bandwidth),
    recomputed=0,
    loops=[],
    collectives={},
    compile_seconds=1.0,
    advice=[],
  )
  text = roofline.as_text(report)
  assert 'at most 800 images/s' in text
  assert 'expect       about 545 images/s, 68% of that' in text
  assert '3,478 of 5,104 images/s and chip' in text


def test_what_the_compiler_lacks_is_read_from_its_message():
  message = 'Ran out of memory. Used 21.50G of 15.75G hbm. Exceeded by 5.75G.'
  assert compilation._exhausted(message) == 21.5 * 2**30
  assert compilation._exhausted('INTERNAL: something else') is None


@needs_compiler
def test_a_small_model_fits_a_pod_of_four(capsys):
  arguments = [DIGITS, '--topology=v5e:2x2', '--json', '--by_operation']
  assert aot.main([*arguments, '--config.model.stage_sizes=(1,)']) == 0
  report = json.loads(capsys.readouterr().out)
  assert report['mesh'] == {'data': 4, 'model': 1} and report['images'] == 16
  assert report['batch']['image'] == [64, 8, 8, 3]
  assert report['fits'] and 0 < report['needed'] < 2**30
  assert report['collectives']['all-reduce']['count'] > 0
  assert report['moved_bytes'] > 0 and report['flops'] > 0
  assert len(report['operations']) == 20
  modules = {x['module'].partition('/')[0] for x in report['operations']}
  assert 'backbone' in modules


@needs_compiler
@pytest.mark.parametrize(
  ('topology', 'message'),
  [
    ('v5e:3x5', 'v5e:16x16'),
    ('v99:2x2', 'v5e:16x16'),
    ('v2:2x2', "Device 'TPU v2' is unknown"),
  ],
)
def test_an_unknown_topology_is_answered(topology, message, capsys):
  assert aot.main([DIGITS, f'--topology={topology}']) == 2
  assert message in capsys.readouterr().err


@needs_compiler
@pytest.mark.parametrize(
  ('topology', 'count'), [('v4:2x2x1', 4), ('v3:2x2', 8), ('tpu7x:2x2x1', 8)]
)
def test_cores_are_devices_unless_they_can_be_one(topology, count):
  devices = compilation.topology_devices(topology)
  assert len(devices) == count
  assert devices[0].device_kind in roofline.CHIPS


@needs_compiler
@pytest.mark.parametrize('topology', ['v6e:16x16', 'v3:4x4', 'v4:2x2x2'])
def test_groups_of_devices_need_not_fill_an_axis_of_chips(topology):
  devices = compilation.topology_devices(topology)
  config = ml_collections.ConfigDict({'data': -1, 'model': 4})
  mesh = mesh_lib.make_mesh(config, devices)
  assert dict(mesh.shape) == {'data': len(devices) // 4, 'model': 4}
