"""Configs by name and by path, and what is said of others."""

import pathlib

import pytest

from acmix_jax.tools import config_file

ROOT = pathlib.Path(__file__).parents[2]
OWN = """
from acmix_jax.configs import imagenet

def get_config(width):
  config = imagenet.resnet('resnet26_acmix', stage_sizes=(1,))
  config.model.width = int(width)
  return config
"""


def test_a_name_and_a_path_give_the_same_config():
  by_name = config_file.load('digits_acmix')
  by_path = config_file.load(str(ROOT / 'configs' / 'digits_acmix.py'))
  assert by_name.to_dict() == by_path.to_dict()
  assert by_name.is_locked


def test_arguments_and_fields_reach_the_config():
  config = config_file.load(
    'ade20k_upernet:swin_small', ['--config.train.batch_size=3']
  )
  assert config.model.backbone == 'swin_small'
  assert config.train.batch_size == 3


def test_a_file_of_ones_own_builds_on_the_recipes(tmp_path):
  path = tmp_path / 'own.py'
  path.write_text(OWN)
  assert config_file.load(f'{path}:8').model.width == 8
  with pytest.raises(ValueError, match=r"own\.py.*argument: 'width'"):
    config_file.load(str(path))


def test_what_recipes_share_is_no_recipe():
  assert {'digits_acmix', 'coco_mask_rcnn'} < set(config_file.recipes())
  assert not {'imagenet', 'common'} & set(config_file.recipes())


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('resnet5_acmix', "Recipe 'resnet5_acmix' .* 'resnet50_acmix'?"),
    ('configs/san1.py', "File 'configs/san1.py' is unknown"),
    ('ade20k_upernet:swin_tinny', "'swin_tinny' is unknown.*'swin_tiny'?"),
    ('resnet50:swin_tiny', 'resnet50.*too many'),
  ],
)
def test_an_unknown_name_is_answered_with_the_nearest(name, message):
  with pytest.raises(ValueError, match=message):
    config_file.load(name)


@pytest.mark.parametrize(
  ('override', 'message'),
  [
    ('--config.train.bach_size=3', 'resnet26 has no field.*"batch_size"'),
    ('--config.train.batch_size=x', "batch_size=x.*'x'"),
    ('--batch=3', "flag 'batch'"),
    ('batch=3', 'Not understood: batch=3'),
  ],
)
def test_a_wrong_flag_is_named(override, message):
  with pytest.raises(ValueError, match=message):
    config_file.load('resnet26', [override])


def test_a_workdir_is_told_from_a_config(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert config_file.is_config('digits_acmix')
  assert config_file.is_config('ade20k_upernet:swin_tiny')
  assert config_file.is_config('configs/missing.py:3')
  assert not config_file.is_config('RUN')
  (tmp_path / 'digits_acmix').mkdir()
  assert not config_file.is_config('digits_acmix')
