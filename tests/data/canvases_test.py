"""Batches on several canvases and from worker processes."""

import os
import pathlib
import subprocess
import sys
import textwrap

import numpy as np
import psutil
import pytest

from acmix_jax.data import pipeline
from tests import fake_data
from tests.data import numbers

ROOT = pathlib.Path(__file__).parents[2]


def is_on_second_canvas(batch):
  (value,) = set(batch['image'][:, 0, 0, 0] % 3 == 0)
  return value


def test_canvases_are_the_same_on_all_processes_and_after_a_resume():
  straight = numbers.train(numbers.TwoCanvases(31), 20, batch_size=4)
  kinds = [is_on_second_canvas(batch) for batch in straight]
  assert 0 < sum(kinds) < 20
  for index in range(2):
    resumed = numbers.train(
      numbers.TwoCanvases(31),
      13,
      batch_size=4,
      start_step=7,
      process_index=index,
      process_count=2,
    )
    numbers.assert_same(
      resumed,
      [
        {key: np.split(values, 2)[index] for key, values in batch.items()}
        for batch in straight[7:]
      ],
    )


def test_damaged_image_is_replaced_by_the_next_of_its_canvas():
  damaged = (6, 7, 30)
  expected = numbers.indices(
    numbers.train(numbers.TwoCanvases(31), 12, batch_size=4)
  )
  for index, other in ((6, 9), (7, 8), (30, 0)):
    expected[expected == index] = other
  got = numbers.indices(
    numbers.train(numbers.TwoCanvases(31, damaged), 12, batch_size=4)
  )
  np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize('process_count', [1, 2])
def test_evaluation_pads_each_canvas(process_count):
  shares = [
    numbers.evaluate(
      numbers.TwoCanvases(31, damaged=(6,)),
      batch_size=4,
      process_index=index,
      process_count=process_count,
    )[0]
    for index in range(process_count)
  ]
  # 20 images on canvas 0 and 11 on canvas 1.
  assert {len(batches) for batches in shares} == {5 + 3}
  seen = []
  for parts in zip(*shares, strict=True):
    shown = np.concatenate(
      [part['image'][part['mask'], 0, 0, 0] for part in parts]
    )
    assert len(set(shown % 3 == 0)) == 1
    seen.extend(shown)
  np.testing.assert_array_equal(np.sort(seen), np.delete(np.arange(31), 6))


def test_workers_give_the_same_stream_and_end_with_close():
  source = numbers.TwoCanvases(20, damaged=(4,))
  expected = numbers.train(source, 5)
  children = set(psutil.Process().children(recursive=True))
  batches = pipeline.train_batches(
    source, numbers.NOISE, batch_size=8, seed=5, workers=2
  )
  result = [next(batches) for _ in range(5)]
  processes = set(psutil.Process().children(recursive=True)) - children
  batches.close()
  assert batches.damaged == 1
  numbers.assert_same(result, expected)
  workers = [p for p in processes if 'resource_tracker' not in cmdline(p)]
  _, alive = psutil.wait_procs(workers, timeout=5)
  assert len(workers) == 2 and not alive


def cmdline(process):
  try:
    return ' '.join(process.cmdline())
  except psutil.NoSuchProcess:
    return ''


MAIN = """
    import sys
    from acmix_jax.data import pipeline, sources, transforms

    if __name__ == '__main__':
      batches = pipeline.train_batches(
        sources.Folder(sys.argv[1], 'train'),
        transforms.Compose((transforms.Decode(), transforms.RandomFlip())),
        batch_size=8,
        seed=0,
        workers=2,
      )
      for _ in batches:
        print('ready', flush=True)
"""


def test_no_worker_outlives_the_main_process(tmp_path):
  data = fake_data.write_class_folders(tmp_path / 'data')
  script = tmp_path / 'main.py'
  script.write_text(textwrap.dedent(MAIN))
  with subprocess.Popen(
    [sys.executable, str(script), str(data)],
    env=os.environ | {'PYTHONPATH': str(ROOT)},
    stdout=subprocess.PIPE,
    text=True,
  ) as main:
    assert main.stdout.readline() == 'ready\n'
    processes = psutil.Process(main.pid).children(recursive=True)
    assert len(processes) >= 2
    main.terminate()
    main.wait(timeout=5)
    _, alive = psutil.wait_procs(processes, timeout=5)
    for process in alive:
      process.kill()
  assert not alive
