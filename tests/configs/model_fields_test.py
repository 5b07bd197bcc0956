"""Every field of a model is a field of its config, with the same default."""

import dataclasses
import importlib

import jax.numpy as jnp
import pytest

from acmix_jax import models
from acmix_jax.tools import config_file

# The recipes' own values.
CHOSEN = {
  'digits_acmix': {'num_classes', 'stage_sizes', 'stem', 'width'},
  'pvt': {'drop_path'},
  'swin': {'drop_path'},
}
# Which operator, and whether it is the variant of dense prediction.
IMPLIED = ('operator', 'dense', 'token_position')


def _fields(model):
  """Values of a model's fields but for those that its name implies."""
  fields = {
    field.name: getattr(model.backbone, field.name)
    for field in dataclasses.fields(model.backbone)
    if field.name not in ('name', 'parent', *IMPLIED)
  }
  fields['num_classes'] = model.head.num_classes
  for name in ('dtype', 'param_dtype'):
    fields[name] = jnp.dtype(fields[name]).name
  return fields


@pytest.mark.parametrize('name', [*models.list_models(), 'digits_acmix'])
def test_model_fields_and_defaults_are_listed(name):
  config = importlib.import_module(f'configs.{name}').get_config().model
  defaults = _fields(models.create_model(config.name))
  listed = config.to_dict()
  del listed['name']
  assert listed.keys() == defaults.keys()
  changed = {field for field in listed if listed[field] != defaults[field]}
  assert changed == CHOSEN.get(name, CHOSEN.get(name.split('_')[0], set()))
  assert _fields(models.create_model(**config)) == listed


@pytest.mark.parametrize(
  ('name', 'overrides'),
  [
    (
      'resnet50_acmix',
      {
        'kernel_att': 5,
        'stem': 'small',
        'attention_implementation': 'pallas',
        'stage_sizes': (1,),
      },
    ),
    ('san10_acmix', {'widths': (32, 64, 64, 64), 'kernel_conv': 5}),
    ('pvt_tiny_acmix', {'reductions': (4, 4, 2, 1), 'drop_path': 0.5}),
    ('swin_tiny', {'window_size': 8, 'num_heads': (1, 2, 4, 8)}),
    ('digits_acmix', {'num_heads': 2, 'param_dtype': 'bfloat16'}),
  ],
)
def test_model_fields_are_set_by_flags(name, overrides):
  config = config_file.load(
    name, [f'--config.model.{field}={x}' for field, x in overrides.items()]
  )
  model = _fields(models.create_model(**config.model))
  assert {field: model[field] for field in overrides} == overrides
