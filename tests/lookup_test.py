"""What is answered to a name that no table holds."""

import pytest

from acmix_jax import lookup

_TABLE = {'resnet26': 26, 'resnet50': 50, 'san10': 10}


def test_a_known_name_gives_its_value():
  assert lookup.find(_TABLE, 'san10', 'Model') == 10


@pytest.mark.parametrize('kind', [KeyError, ValueError])
def test_an_unknown_name_is_answered_with_the_nearest_in_plain_text(kind):
  with pytest.raises(kind) as error:
    lookup.find(_TABLE, 'resnet5', 'Model')
  assert str(error.value) == (
    "Model 'resnet5' is unknown. Did you mean 'resnet50'? Known: resnet26, "
    'resnet50, san10.'
  )


def test_a_name_far_from_all_is_answered_without_a_guess():
  assert lookup.unknown('optim.name', 'lion', ['sgd', 'adamw']) == (
    "optim.name 'lion' is unknown. Known: sgd, adamw."
  )
