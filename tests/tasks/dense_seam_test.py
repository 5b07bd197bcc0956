"""A dense task through pipeline, loop and evaluation, on two canvases."""

import numpy as np
import pytest

from acmix_jax.tasks import task as task_lib
from tests.tasks import dense_run, toy_dense
from tests.train import tiny_run


@pytest.fixture(scope='module')
def straight(tmp_path_factory):
  """A training that was never stopped, on one device."""
  workdir = tmp_path_factory.mktemp('straight')
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(task_lib._TASKS, 'toy_dense', toy_dense.ToyDense)
    return dense_run.run_straight(toy_dense.get_config(), workdir)


@pytest.mark.parametrize('split', ['train', 'eval'])
@pytest.mark.parametrize('process_count', [1, 2])
def test_batches_have_the_shapes_of_the_task(split, process_count):
  task = toy_dense.ToyDense(toy_dense.get_config())
  expected = [
    {key: (x.shape, x.dtype) for key, x in shapes.items()}
    for shapes in task.batch_shapes(split)
  ]
  canvases = []
  for index in range(process_count):
    if split == 'train':
      batches = task.train_data(0, index, process_count)
      taken = [next(batches) for _ in range(task.steps_per_epoch)]
    else:
      batches = task.eval_data(index, process_count)
      taken = list(batches)
    batches.close()
    canvases.append(
      [
        expected.index(
          {
            key: ((len(x) * process_count, *x.shape[1:]), x.dtype)
            for key, x in batch.items()
          }
        )
        for batch in taken
      ]
    )
  assert set(canvases[0]) == {0, 1}
  assert all(other == canvases[0] for other in canvases)


def test_flipped_and_padded_examples_are_those_of_the_source():
  task = toy_dense.ToyDense(toy_dense.get_config())
  batches = task.train_data(0, 0, 1)
  flips = set()
  for _ in range(task.steps_per_epoch):
    batch = next(batches)
    for row, image_id in enumerate(batch['image_id']):
      example = task.sources['train'][image_id - 1000]
      height, width = batch['size'][row]
      assert (height, width) == example['label_map'].shape
      labels = batch['label_map'][row]
      assert (labels[height:] == toy_dense.IGNORED).all()
      assert (labels[:, width:] == toy_dense.IGNORED).all()
      labels, image = labels[:height, :width], batch['image'][row]
      left, top, right, bottom = batch['boxes'][row, 0].astype(int)
      flipped = not np.array_equal(labels, example['label_map'])
      flips.add(flipped)
      if flipped:
        labels = labels[:, ::-1]
        left, right = width - right, width - left
        image = image[:, :width][:, ::-1]
      np.testing.assert_array_equal(labels, example['label_map'])
      np.testing.assert_array_equal(
        image[:height, :width], example['image'], err_msg=str(image_id)
      )
      np.testing.assert_array_equal(
        (left, top, right, bottom), example['boxes'][0]
      )
  batches.close()
  assert flips == {False, True}
  assert batches.damaged == 1


def test_evaluation_counts_what_can_be_read_once(straight):
  workdir, result, _ = straight
  source = toy_dense.Rectangles(21, seed=1)
  readable = np.delete(np.arange(21), (3, 8))
  assert result['count'] == len(readable)
  assert result['pixels'] == source.sizes[readable].prod(axis=1).sum()
  lines = [line for line in tiny_run.lines(workdir) if 'eval/count' in line]
  assert [line['step'] for line in lines] == [5, 10, 13]
  assert lines[-1]['eval/mean_iou'] == result['mean_iou']
  assert result['mean_iou'] > lines[0]['eval/mean_iou']


def test_update_is_compiled_once_for_each_canvas(straight):
  said = [text for text in straight.messages if 'Compiling the update' in text]
  assert len(said) == len(toy_dense.CANVASES)
  for height, width in toy_dense.CANVASES:
    assert any(f'image (8, {height}, {width}, 3)' in text for text in said)
