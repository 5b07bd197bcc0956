"""Batches: their order, shares, resumption, and damaged files."""

import itertools
import pickle

import numpy as np
import pytest

from acmix_jax.data import decode, pipeline, sources, transforms
from tests import fake_data
from tests.data import numbers


def test_batches_have_the_types_promised():
  (batch,) = numbers.train(numbers.Numbers(20), 1)
  assert {k: (v.dtype, v.shape) for k, v in batch.items()} == {
    'image': (np.dtype('uint8'), (8, 1, 1, 3)),
    'label': (np.dtype('int32'), (8,)),
    'mask': (np.dtype('bool'), (8,)),
  }
  assert batch['mask'].all()
  np.testing.assert_array_equal(batch['label'], numbers.indices([batch]) % 3)


def test_each_epoch_is_a_new_order_with_new_noise():
  stream = numbers.train(numbers.Numbers(20), 5)
  epochs = numbers.indices(stream).reshape(2, 20)
  for epoch in epochs:
    np.testing.assert_array_equal(np.sort(epoch), np.arange(20))
  noise = np.concatenate([batch['image'][:, 0, 0, 2] for batch in stream])
  noise = noise.reshape(2, 20)
  assert (epochs[0] != epochs[1]).sum() > 10
  by_image = [n[np.argsort(e)] for n, e in zip(noise, epochs, strict=True)]
  assert (by_image[0] != by_image[1]).sum() > 10
  other_seed = numbers.indices(numbers.train(numbers.Numbers(20), 5, seed=6))
  assert (other_seed != epochs.ravel()).sum() > 20


@pytest.mark.parametrize('length, shown', [(20, 7), (21, 7)])
def test_repeats_show_an_image_thrice_in_a_row_with_new_noise(length, shown):
  stream = numbers.train(numbers.Numbers(length), 8, repeats=3)
  noise = np.concatenate([batch['image'][:, 0, 0, 2] for batch in stream])
  epochs = numbers.indices(stream)[: 2 * length].reshape(2, length)
  for epoch in epochs:
    expected = np.repeat(epoch[::3], 3)[:length]
    np.testing.assert_array_equal(epoch, expected)
    assert len(set(epoch)) == shown
  assert set(epochs[0]) != set(epochs[1])
  assert len(set(noise[:3])) > 1


def test_repeats_draw_from_the_order_without_repeats():
  once = numbers.indices(numbers.train(numbers.Numbers(21), 8))
  thrice = numbers.indices(numbers.train(numbers.Numbers(21), 8, repeats=3))
  for start in (0, 21):
    np.testing.assert_array_equal(
      thrice[start : start + 21 : 3], once[start : start + 7]
    )


def test_repeats_resume_and_are_shared_by_processes():
  straight = numbers.train(numbers.Numbers(20), 6, repeats=3)
  resumed = [
    numbers.train(
      numbers.Numbers(20),
      4,
      repeats=3,
      start_step=2,
      process_index=index,
      process_count=2,
    )
    for index in range(2)
  ]
  for step, batch in enumerate(straight[2:]):
    for key, values in batch.items():
      for index in range(2):
        np.testing.assert_array_equal(
          resumed[index][step][key], np.split(values, 2)[index]
        )


@pytest.mark.parametrize('start_step', [1, 2, 3, 7])
def test_resume_continues_the_stream(start_step):
  # An epoch is 2.5 batches, so that steps 2 and 7 span its end.
  straight = numbers.train(numbers.Numbers(20), 10)
  resumed = numbers.train(
    numbers.Numbers(20), 10 - start_step, start_step=start_step
  )
  numbers.assert_same(resumed, straight[start_step:])


@pytest.mark.parametrize('threads', [0, 1, 3])
def test_threads_do_not_change_the_stream(threads):
  numbers.assert_same(
    numbers.train(numbers.Numbers(20), 6, threads=threads),
    numbers.train(numbers.Numbers(20), 6),
  )


def test_a_batch_has_the_names_of_what_is_in_it():
  source = numbers.Numbers(20, damaged=(3, 4))
  for process_index in range(2):
    for batches in (
      pipeline.train_batches(
        source,
        numbers.KEEP,
        batch_size=8,
        seed=5,
        process_index=process_index,
        process_count=2,
      ),
      pipeline.eval_batches(
        source,
        numbers.KEEP,
        batch_size=8,
        process_index=process_index,
        process_count=2,
      ),
    ):
      for batch in itertools.islice(batches, 4):
        shown = batch['image'][batch['mask'], 0, 0, 0]
        assert batches.names == [f'number{index}' for index in shown]
      batches.close()


@pytest.mark.parametrize('process_count', [2, 4])
def test_blocks_of_the_processes_make_up_the_same_global_batches(process_count):
  expected = numbers.train(numbers.Numbers(21), 6)
  shares = [
    numbers.train(
      numbers.Numbers(21), 6, process_index=index, process_count=process_count
    )
    for index in range(process_count)
  ]
  joined = [
    {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    for parts in zip(*shares, strict=True)
  ]
  numbers.assert_same(joined, expected)


def test_closed_batches_are_at_their_end():
  batches = pipeline.train_batches(
    numbers.Numbers(20), numbers.KEEP, batch_size=8, seed=0
  )
  next(batches)
  batches.close()
  batches.close()
  assert list(batches) == []


@pytest.mark.parametrize('length', [1, 7, 8, 9, 23, 24])
@pytest.mark.parametrize('process_count', [1, 2, 4])
def test_evaluation_counts_every_image_once(length, process_count):
  seen, sizes = [], set()
  for index in range(process_count):
    batches, _ = numbers.evaluate(
      numbers.Numbers(length),
      batch_size=8,
      process_index=index,
      process_count=process_count,
    )
    sizes.add(tuple(len(batch['mask']) for batch in batches))
    for batch in batches:
      seen.extend(batch['image'][batch['mask'], 0, 0, 0])
      labels = batch['label'][batch['mask']]
      np.testing.assert_array_equal(
        labels, batch['image'][batch['mask'], 0, 0, 0] % 3
      )
  assert sizes == {(8 // process_count,) * -(-length // 8)}
  np.testing.assert_array_equal(sorted(seen), np.arange(length))


def test_damaged_image_is_replaced_by_the_next_in_training():
  source = numbers.Numbers(20, damaged=(4, 5, 19))
  replaced = numbers.indices(numbers.train(source, 5, max_damaged=3))
  expected = numbers.indices(numbers.train(numbers.Numbers(20), 5))
  for index, other in ((4, 6), (5, 6), (19, 0)):
    expected[expected == index] = other
  np.testing.assert_array_equal(replaced, expected)


def test_damaged_images_are_logged_and_counted_once(caplog):
  batches = pipeline.train_batches(
    numbers.Numbers(8, damaged=(3, 6)), numbers.KEEP, batch_size=8, seed=0
  )
  assert batches.damaged == 0
  for _ in range(3):
    next(batches)
  batches.close()
  assert batches.damaged == 2
  logged = [record.getMessage() for record in caplog.records]
  assert len(logged) == 2
  assert {message.split(': ')[1] for message in logged} == {
    'number3',
    'number6',
  }


def test_damaged_image_is_masked_in_evaluation():
  batches, damaged = numbers.evaluate(
    numbers.Numbers(10, damaged=(2,)), batch_size=4
  )
  mask = np.concatenate([batch['mask'] for batch in batches])
  np.testing.assert_array_equal(mask, [i < 10 and i != 2 for i in range(12)])
  assert damaged == 1


class Marked(numbers.Numbers):
  """Numbers with a mark; of a blank it is minus the index."""

  def __getitem__(self, index):
    return {**super().__getitem__(index), 'mark': np.float32(index)}

  def blank(self, index):
    return {**super().blank(index), 'mark': np.float32(-index)}


def test_source_makes_the_blanks_and_no_key_is_lost():
  (batch,), _ = numbers.evaluate(Marked(6, damaged=(2,)), batch_size=8)
  np.testing.assert_array_equal(batch['mark'], [0, 1, -2, 3, 4, 5, 0, -1])
  np.testing.assert_array_equal(batch['mask'], [1, 1, 0, 1, 1, 1, 0, 0])


class MarkedWithoutBlanks(Marked):
  """The blanks lack the mark."""

  blank = numbers.Numbers.blank


@pytest.mark.parametrize('threads', [0, 2])
def test_keys_that_differ_within_a_batch_are_an_error(threads):
  with pytest.raises(ValueError, match="'mark' is in 6 of the 8 examples"):
    numbers.evaluate(MarkedWithoutBlanks(6), batch_size=8, threads=threads)


def test_shapes_that_differ_within_a_batch_are_an_error():
  def grow(example, rng):
    del rng
    index = example['image'][0, 0, 0]
    return {**example, 'image': np.zeros((1, 1 + index % 2, 3), np.uint8)}

  batches = pipeline.eval_batches(numbers.Numbers(4), grow, batch_size=4)
  with pytest.raises(
    ValueError, match=r"'image' .* \[\(1, 1, 3\), \(1, 2, 3\)"
  ):
    next(batches)


def test_too_many_damaged_images_stop_the_run():
  batches = pipeline.train_batches(
    numbers.Numbers(16, damaged=(1, 7, 12)),
    numbers.KEEP,
    batch_size=16,
    seed=0,
    max_damaged=2,
  )
  with pytest.raises(
    pipeline.TooManyDamagedError, match='3 images .* max_damaged=2'
  ) as error:
    next(batches)
  for name in ('number1:', 'number7:', 'number12:'):
    assert name in str(error.value)


def test_nothing_but_damaged_images_is_an_error():
  source = numbers.Numbers(3, damaged=(0, 1, 2))
  with pytest.raises(pipeline.TooManyDamagedError, match='number0'):
    numbers.train(source, 1, max_damaged=100)
  with pytest.raises(pipeline.TooManyDamagedError, match='max_damaged=1'):
    numbers.evaluate(source, batch_size=4, max_damaged=1)


def test_error_comes_from_workers_and_lists_at_most_twenty_files():
  error = pipeline.TooManyDamagedError([f'f{i}' for i in range(25)], 24)
  message = str(pickle.loads(pickle.dumps(error)))
  assert 'f19' in message and 'f20' not in message
  assert 'and 5 more' in message


def test_damaged_and_missing_files_of_a_folder_are_named(tmp_path):
  fake_data.write_class_folders(tmp_path)
  source = sources.Folder(str(tmp_path), 'val')
  truncated = tmp_path / 'val' / 'bee' / '001.jpg'
  truncated.write_bytes(truncated.read_bytes()[:-200])
  missing = tmp_path / 'val' / 'cat' / '002.jpg'
  missing.unlink()
  resize = transforms.Compose(
    (transforms.Decode(), transforms.ResizeShort(20), transforms.CenterCrop(16))
  )
  batches = pipeline.eval_batches(source, resize, batch_size=6, max_damaged=1)
  first = next(batches)
  np.testing.assert_array_equal(first['mask'], [1, 1, 1, 1, 1, 0])
  with open(source[0]['name'], 'rb') as file:
    example = {'image': decode.decode(file.read())}
  np.testing.assert_array_equal(
    first['image'][0], resize(example, np.random.default_rng())['image']
  )
  with pytest.raises(pipeline.TooManyDamagedError) as error:
    next(batches)
  assert str(truncated) in str(error.value)
  assert str(missing) in str(error.value)


@pytest.mark.parametrize(
  'arguments, message',
  [
    ({'batch_size': 9, 'process_count': 2}, 'nearest that can: 8'),
    ({'batch_size': 0}, 'batch_size=0'),
    ({'batch_size': 8, 'process_index': 1}, 'process_index=1'),
    ({'batch_size': 8, 'start_step': -1}, 'start_step=-1'),
    ({'batch_size': 8, 'repeats': 0}, 'repeats=0'),
    ({'batch_size': 8, 'seed': -1}, 'seed=-1 is negative'),
    ({'batch_size': 8, 'threads': -1}, 'threads=-1 is negative'),
    ({'batch_size': 8, 'workers': -1}, 'workers=-1 is negative'),
    ({'batch_size': 8, 'max_damaged': -1}, 'max_damaged=-1 is negative'),
  ],
)
def test_bad_arguments_are_named(arguments, message):
  with pytest.raises(ValueError, match=message):
    pipeline.train_batches(
      numbers.Numbers(20), numbers.KEEP, **({'seed': 0} | arguments)
    )


def test_empty_source_is_an_error():
  with pytest.raises(ValueError, match='no images'):
    numbers.evaluate(numbers.Numbers(0), batch_size=8)
