"""Counted costs against those of the official models and the paper."""

import functools
import json
import re

import pytest

import acmix_jax
from acmix_jax.tools import cost
from acmix_jax.tools.cost import __main__ as program

# Parameters and multiply-adds of the official code at 224x224, batch 1, by a
# counter of every convolution and product that it runs.
OFFICIAL = {
  'resnet26': (13_696_552, 2_342_256_640),
  'resnet38': (19_626_792, 3_215_720_448),
  'resnet50': (25_557_032, 4_089_184_256),
  'resnet26_acmix': (10_487_816, 2_216_515_584),
  'resnet38_acmix': (14_410_896, 2_859_408_128),
  'resnet50_acmix': (18_333_976, 3_502_300_672),
  'san10': (11_841_124, 1_791_048_192),
  'san15': (16_181_310, 2_478_283_776),
  'san19': (20_518_470, 3_130_145_280),
  'pvt_tiny': (13_229_288, 1_932_911_616),
  'pvt_small': (24_485_864, 3_815_701_504),
  'swin_tiny': (28_288_354, 4_490_566_656),
  'swin_small': (49_606_258, 8_740_875_264),
  'swin_tiny_acmix': (28_649_908, 4_645_008_384),
  'swin_small_acmix': (50_345_080, 8_992_859_136),
}
# Detectors at 80 classes: multiply-adds at 800x1280 by part, as mmdetection's
# built models compute them.
DETECTORS = {
  'retinanet:pvt_tiny': {
    'backbone': 69_492_736_000,
    'neck': 13_717_340_160,
    'head': 137_800_673_280,
  },
  'cascade_mask_rcnn:swin_tiny': {
    'backbone': 95_563_250_688,
    'neck': 53_084_160_000,
    'rpn': 50_615_792_640,
    **{f'box_heads_{stage}': 128_861_184_000 for stage in range(3)},
    **{f'mask_heads_{stage}': 52_985_856_000 for stage in range(3)},
  },
}
# Segmenters at 150 classes: parameters and, at 512x512 and 512x2048, multiply-
# adds by part. mmsegmentation's necks and heads measured; backbones by closed
# forms that give the official 224x224 counts.
PYRAMID = (1_643_158, 8_090_812_416, 32_363_249_664)
SEGMENTERS = {
  'semantic_fpn:pvt_tiny': {
    'backbone': (12_714_752, 11_744_051_200, 71_940_702_208),
    'neck': (2_623_488, 13_354_663_936, 53_418_655_744),
    'head': PYRAMID,
  },
  'semantic_fpn:pvt_small': {
    'backbone': (23_971_328, 23_028_826_112, 138_823_073_792),
    'neck': (2_623_488, 13_354_663_936, 53_418_655_744),
    'head': PYRAMID,
  },
  'semantic_fpn:resnet50': {
    'neck': (3_344_384, 14_847_836_160, 59_391_344_640),
    'head': PYRAMID,
  },
  'upernet:swin_tiny': {
    'backbone': (27_520_698, 25_502_541_696, 98_995_128_576),
    'head': (31_497_366, 211_362_250_752, 845_390_020_608),
    'auxiliary': (923_798, 945_291_264, 3_781_165_056),
  },
  'upernet:swin_small': {
    'backbone': (48_838_602, 49_221_659_520, 192_026_879_232),
    'head': (31_497_366, 211_362_250_752, 845_390_020_608),
    'auxiliary': (923_798, 945_291_264, 3_781_165_056),
  },
}
count = functools.cache(cost.count)


@pytest.mark.parametrize(
  'name',
  [
    pytest.param(
      name,
      marks=[pytest.mark.slow] * bool(re.search('38|15|small', name)),
    )
    for name in OFFICIAL
  ],
)
def test_counts_are_the_official_ones(name):
  assert (count(name).params, count(name).macs) == OFFICIAL[name]


@pytest.mark.parametrize('name', DETECTORS)
def test_multiply_adds_of_detectors_are_the_official_ones(name):
  parts = cost.count(name, (800, 1280)).parts
  assert {part: x.macs for part, x in parts.items()} == DETECTORS[name]


@pytest.mark.parametrize('size', [(512, 512), (512, 2048)])
@pytest.mark.parametrize('name', SEGMENTERS)
def test_parts_of_segmenters_are_the_official_ones(name, size):
  counted = count(name, size)
  for part, (params, *macs) in SEGMENTERS[name].items():
    assert counted.parts[part] == (params, macs[size[1] > 512]), part
  assert counted.macs == sum(
    part.macs for name, part in counted.parts.items() if name != 'auxiliary'
  )


@pytest.mark.parametrize(
  ('name', 'stages'),
  [
    ('resnet50', ('1.85', '0.01')),
    ('resnet50_attention', ('0.96', '0.19')),
    ('resnet50_acmix', ('0.96', '0.35')),
    ('swin_tiny', ('1.04', '0.49')),
    ('swin_tiny_acmix', ('1.04', '0.64')),
  ],
)
def test_stages_are_those_of_table_1(name, stages):
  assert tuple(f'{macs / 1e9:.2f}' for macs in count(name).table1) == stages


def test_stages_of_a_small_model_are_those_counted_by_hand():
  model = acmix_jax.create_model(
    'resnet26_acmix',
    stage_sizes=(1, 1),
    width=8,
    num_heads=2,
    kernel_att=3,
    stem='small',
    num_classes=10,
  )
  fine, coarse = 32 * 32, 16 * 16
  # Stage 2: position, attention over 9 keys, 6 maps to 9, shifts.
  first = cost.Stages(
    3 * 8 * 8 * fine, (2 * 4 + 2 * 9 * 8 + 6 * 9 * 4 + 9 * 9 * 8) * fine
  )
  at_fine, attention = 2 * 8 + 6 * 9 * 8, 2 * 9 * 16
  second = cost.Stages(
    3 * 16 * 16 * fine,
    at_fine * fine + (attention + 9 * 9 * 16) * coarse,
  )
  others = (
    (27 * 8 + 8 * 8 + 8 * 32 + 8 * 32 + 32 * 16) * fine
    + (16 * 64 + 32 * 64) * coarse
    + 64 * 10
  )
  counted = cost.count(model, 32)
  assert counted.operators == {
    'backbone/stage1_0/operator': first,
    'backbone/stage2_0/operator': second,
  }
  assert counted.macs == sum(first) + sum(second) + others
  assert counted.table1 == (
    first.stage1 + second.stage1,
    first.stage2 + second.stage2 + attention * (fine - coarse),
  )


def test_a_convolution_is_divided_into_projections_and_shifts():
  counted = cost.count(
    acmix_jax.create_model('resnet26', stage_sizes=(1,), width=8), (64, 96)
  )
  pixels = 16 * 24
  assert counted.operators == {
    'backbone/stage1_0/operator': (9 * 8 * 8 * pixels, 0)
  }
  assert counted.table1 == (9 * 8 * 8 * pixels, 9 * 8 * pixels)


def test_the_implementation_does_not_change_the_count():
  name, size = 'resnet26_acmix', (128, 160)
  shifts = acmix_jax.create_model(name, convolution_implementation='shifts')
  assert cost.count(shifts, size).operators == cost.count(name, size).operators


def test_json_holds_the_figures_of_each_model(capsys):
  assert not program.main(
    ['resnet26', 'pvt_tiny', '--json', '--image_size=64x96']
  )
  resnet, pvt = json.loads(capsys.readouterr().out)
  counted = cost.count('resnet26', (64, 96))
  assert resnet == {
    'model': 'resnet26',
    'params': 13_696_552,
    'macs': counted.macs,
    'parts': {
      'backbone': {
        'params': 13_696_552 - 2_049_000,
        'macs': counted.macs - 2_048_000,
      },
      'head': {'params': 2_049_000, 'macs': 2_048_000},
    },
    'stage1_macs': counted.stage1_macs,
    'stage2_macs': 0,
    'table1': counted.table1._asdict(),
  }
  assert pvt['model'] == 'pvt_tiny' and pvt['table1'] is None


def test_the_table_states_where_the_paper_differs(capsys):
  assert not program.main(['resnet50_acmix', 'san19', '--image_size=224'])
  _, _, acmix, san, note = capsys.readouterr().out.splitlines()
  assert acmix.split()[:3] == ['resnet50_acmix', '18,333,976', '3,502,300,672']
  assert '0.96 (73%)  0.35 (27%)' in acmix
  assert san.endswith('0.72')
  assert 'san19: the paper prints 0.72 for stage II' in note
  assert '0.56 (-0.16)' in note


def test_a_segmenter_is_listed_by_part(capsys):
  name = 'upernet:swin_tiny'
  assert not program.main([name, 'resnet26', '--image_size=512'])
  _, _, whole, *parts, last = capsys.readouterr().out.splitlines()
  assert whole.split()[:3] == [name, '59,941,862', '236,864,792,448']
  assert [row.split() for row in parts] == [
    ['backbone', '27,520,698', '25,502,541,696'],
    ['head', '31,497,366', '211,362,250,752'],
    ['auxiliary', '923,798', '945,291,264'],
  ]
  assert last.split()[0] == 'resnet26'


@pytest.mark.parametrize('size', ['256', '800x1344', '224x448'])
def test_the_paper_is_compared_at_its_own_size_alone(size, capsys):
  assert not program.main(['san19', f'--image_size={size}'])
  *_, row = capsys.readouterr().out.splitlines()
  assert row.split()[0] == 'san19' and row.split()[-2:] == ['-', '-']


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['resnet50_acmx'], "Did you mean 'resnet50_acmix'"),
    (['upernet'], 'upernet needs a backbone'),
    (['upernet:swin_tny'], "Did you mean 'swin_tiny'"),
    (['resnet50_acmix', '--image_size=64'], 'smallest side that works is 4'),
  ],
)
def test_what_cannot_be_counted_is_answered(arguments, message, capsys):
  assert program.main(arguments) == 2
  assert message in capsys.readouterr().err


def test_a_wrong_size_is_answered(capsys):
  with pytest.raises(SystemExit):
    program.main(['resnet26', '--image_size=big'])
  assert "'big' is neither N nor HxW" in capsys.readouterr().err
