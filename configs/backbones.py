"""Backbones of dense prediction, as configs of one backbone name them.

`--config=configs/ade20k_upernet.py:swin_tiny_acmix` puts a head on the model of
configs/swin_tiny_acmix.py.
"""

import importlib
import pathlib

import ml_collections

from acmix_jax import lookup

FAMILIES = ('resnet', 'san', 'pvt', 'swin')


def family(name: str) -> str:
  """Family of a backbone: one of `FAMILIES`.

  Raises:
    ValueError: there is no such backbone.
  """
  here = pathlib.Path(__file__).parent
  files = {
    path.stem: family
    for family in FAMILIES
    for path in sorted(here.glob(f'{family}*.py'))
  }
  return lookup.find(files, name, 'Backbone')


def model(
  head: str, backbone: str, *, num_classes: int
) -> ml_collections.ConfigDict:
  """Section `model` of a config: a head on a backbone.

  The fields of the backbone, and their values, are those of the recipe with
  which it is trained as a classifier.

  Args:
    head: registered name of the head.
    backbone: registered name of the backbone.
    num_classes: classes of the data set.

  Raises:
    ValueError: there is no such backbone.
  """
  family(backbone)
  recipe = importlib.import_module(f'acmix_jax.configs.{backbone}').get_config()
  config = recipe.copy_and_resolve_references().model
  config.name = head
  config.backbone = backbone
  config.num_classes = num_classes
  return config
