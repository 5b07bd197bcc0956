"""Weights of other classes, or of another number of images, are noticed."""

import pathlib
import unicodedata

import pytest

from acmix_jax.train import description, loop
from tests.train import tiny_run

_PATH = pathlib.Path('run/checkpoints/7')
_NAMES = [f'class {i}' for i in range(30)]


def _data(names=None, images=None):
  data = {'class_names': names, 'images': images}
  return {key: value for key, value in data.items() if value is not None}


@pytest.mark.parametrize(
  'names, differences',
  [
    (['cat', 'kitten'], "1: 'dog', 'kitten'."),
    (['dog', 'cat'], "0: 'cat', 'dog'; 1: 'dog', 'cat'."),
    (['cat', 'dog', 'eel'], "2: None, 'eel'."),
    (['cat'], "1: 'dog', None."),
  ],
  ids=['renamed', 'reordered', 'added', 'removed'],
)
def test_other_classes_are_refused_by_label(names, differences):
  with pytest.raises(ValueError) as error:
    description.check_classes(_data(['cat', 'dog']), _data(names), _PATH)
  error.match(f'{_PATH} was trained on other classes')
  assert f'2 classes then, {len(names)} now' in str(error.value)
  assert f'(then, now): {differences}' in str(error.value)


def test_ten_of_many_differences_are_shown():
  with pytest.raises(ValueError, match="'class 10'; and 20 more") as error:
    description.check_classes(_data(_NAMES), _data(_NAMES[1:]), _PATH)
  assert str(error.value).count(': ') >= 10


def test_names_equal_in_normal_form_are_equal():
  saved = [unicodedata.normalize('NFC', 'Büffel')]
  stored = [unicodedata.normalize('NFD', 'Büffel')]
  assert saved != stored
  description.check_classes(_data(saved), _data(stored), _PATH)


@pytest.mark.parametrize('saved, data', [(None, _NAMES), (_NAMES, None)])
def test_names_of_one_side_alone_say_nothing(caplog, saved, data):
  caplog.set_level('INFO', 'acmix_jax')
  description.check_classes(_data(saved), _data(data), _PATH)
  description.note_start(_data(saved), _data(data), _PATH)
  description.note_images(_data(images=3), _data(), _PATH)
  description.note_images(_data(), _data(images=3), _PATH)
  assert not caplog.records


@pytest.mark.parametrize(
  'names, level, message',
  [
    (_NAMES[1:], 'INFO', 'was trained on other classes'),
    ([*_NAMES[1:], 'new'], 'WARNING', 'other classes, though as many'),
  ],
)
def test_a_head_of_other_classes_is_said(caplog, names, level, message):
  caplog.set_level('INFO', 'acmix_jax')
  description.note_start(_data(_NAMES), _data(names), _PATH)
  (record,) = caplog.records
  assert record.levelname == level and message in record.getMessage()


def test_another_number_of_images_is_said(caplog):
  description.note_images(_data(images=100), _data(images=120), _PATH)
  assert 'has 120 images; it had 100' in caplog.text
  caplog.clear()
  description.note_images(_data(images=100), _data(images=100), _PATH)
  assert not caplog.records


def _rename_a_class(monkeypatch):
  from acmix_jax.data import sources

  names = [*sources.Digits.class_names[:-1], 'neun']
  monkeypatch.setattr(sources.Digits, 'class_names', tuple(names))


@pytest.mark.usefixtures('tiny_model')
def test_a_training_is_neither_resumed_nor_evaluated_with_other_classes(
  tmp_path, monkeypatch, caplog
):
  loop.run(tiny_run.config(num_steps=2), str(tmp_path / 'run'))
  _rename_a_class(monkeypatch)
  for mode in ('train', 'eval'):
    with pytest.raises(ValueError, match="9: '9', 'neun'"):
      loop.run(tiny_run.config(num_steps=3), str(tmp_path / 'run'), mode)
  config = tiny_run.config(num_steps=1)
  config.init_from = str(tmp_path / 'run')
  loop.run(config, str(tmp_path / 'new'))
  assert 'other classes, though as many' in caplog.text
