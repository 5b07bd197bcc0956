"""What is read for very long is named, and a FIFO is not waited for."""

import os
import threading
import time

import numpy as np
import pytest

from acmix_jax.data import decode, pipeline, sources, stalls, transforms
from acmix_jax.data.sources import files
from tests import fake_data


class Stalling(sources.LabelledImages):
  """Images of which one is read as long as an event is not set."""

  class_names = ('a',)

  def __init__(self, released: threading.Event):
    self._released = released

  def __len__(self):
    return 4

  def __getitem__(self, index):
    if index == 2:
      with stalls.watched('slow.jpg'):
        self._released.wait()
    image = np.zeros((1, 1, 3), np.uint8)
    return {'image': image, 'label': np.int32(0), 'name': str(index)}


def test_file_that_is_read_for_long_is_named_once(monkeypatch, caplog):
  monkeypatch.setattr(stalls, 'WARN_AFTER', 0.05)
  monkeypatch.setattr(stalls, '_CHECK_EVERY', 0.05)
  released = threading.Event()
  batches = pipeline.eval_batches(
    Stalling(released), transforms.Decode(), batch_size=4
  )
  received = []
  consumer = threading.Thread(target=lambda: received.append(next(batches)))
  consumer.start()
  end = time.monotonic() + 20
  while 'slow.jpg' not in caplog.text and time.monotonic() < end:
    time.sleep(0.02)
  time.sleep(0.3)
  assert not received
  released.set()
  consumer.join()
  batches.close()
  assert received[0]['mask'].all()
  (message,) = caplog.messages
  assert message.startswith('Still reading slow.jpg after ')


def test_what_is_read_in_time_is_not_named(monkeypatch, caplog):
  monkeypatch.setattr(stalls, '_CHECK_EVERY', 0.01)
  for _ in range(20):
    with stalls.watched('quick.jpg'):
      time.sleep(0.01)
  assert not caplog.messages


def test_fifo_in_place_of_a_file_is_damage(tmp_path):
  fake_data.write_class_folders(tmp_path)
  source = sources.Folder(tmp_path, 'train')
  path = tmp_path / 'train' / 'bee' / '000.jpg'
  path.unlink()
  os.mkfifo(path)
  resize = transforms.Compose((transforms.Decode(), transforms.ResizeShort(8)))
  batches = pipeline.train_batches(source, resize, batch_size=12, seed=0)
  assert next(batches)['mask'].all()
  assert batches.damaged == 1
  batches.close()
  with pytest.raises(decode.DecodeError, match=f'{path} is no regular file'):
    files.read_size(str(path))
