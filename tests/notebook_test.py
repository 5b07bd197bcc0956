"""The notebook runs, and the outputs it is kept with are of a whole run."""

import base64
import os
import re

import cv2
import nbformat
import numpy as np
import pytest

from notebooks import execute

# Pictures by the cells that show them.
PICTURES = (
  'show-images',
  'draw-depth',
  'draw-curves',
  'show-segmentation',
  'show-detection',
)
# Scores by the cells of the trainings, and what the kept run has to reach.
SCORES = {
  'train-images': ('digits_steps', 'top1', 0.9),
  'train-segmentation': ('segmentation_steps', 'mean_iou', 0.3),
  'train-detection': ('detection_steps', 'box_ap50', 0.5),
}


def _kept():
  return nbformat.read(execute.NOTEBOOK, as_version=4)


@pytest.fixture(scope='module')
def executed(tmp_path_factory):
  """The notebook after a run with two updates of each training."""
  flags = re.sub(
    'device_count=[0-9]+', 'device_count=1', os.environ['XLA_FLAGS']
  )
  return execute.execute(
    tmp_path_factory.mktemp('notebook'),
    {steps: 2 for steps, _, _ in SCORES.values()},
    env=os.environ | {'XLA_FLAGS': flags},
  )


@pytest.fixture(params=['kept', 'executed'])
def notebook(request):
  """The file as it is, or after a short run."""
  if request.param == 'kept':
    return _kept()
  return request.getfixturevalue('executed')


def _cell(notebook, name):
  (cell,) = (cell for cell in notebook.cells if cell.id == name)
  return cell


def _text(cell):
  return ''.join(x.text for x in cell.outputs if x.output_type == 'stream')


def _score(notebook, name):
  _, score, _ = SCORES[name]
  return float(
    re.search(rf'eval/{score} (\S+)', _text(_cell(notebook, name)))[1]
  )


def test_cells_ran_in_order_and_without_errors(notebook):
  cells = [cell for cell in notebook.cells if cell.cell_type == 'code']
  assert [x.execution_count for x in cells] == [*range(1, 1 + len(cells))]
  for output in (output for cell in cells for output in cell.outputs):
    assert output.output_type != 'error'
    assert output.get('name') != 'stderr', output.text


def test_trainings_went_to_their_ends(notebook):
  variables = {}
  exec(_cell(notebook, 'parameters').source, variables)
  for name, (steps, _, _) in SCORES.items():
    last = f'step {variables[steps]}/{variables[steps]} '
    assert last in _text(_cell(notebook, name))
    assert 0 <= _score(notebook, name) <= 1


def test_pictures_are_shown(notebook):
  for name in PICTURES:
    (encoded,) = (
      output.data['image/png']
      for output in _cell(notebook, name).outputs
      if 'image/png' in output.get('data', {})
    )
    picture = cv2.imdecode(
      np.frombuffer(base64.b64decode(encoded), np.uint8), cv2.IMREAD_COLOR
    )
    assert min(picture.shape[:2]) > 250
    assert picture.std() > 10


def test_predictions_of_single_files_give_the_score(notebook):
  right, count = map(
    int,
    re.search(
      r'(\d+) of (\d+) held-out', _text(_cell(notebook, 'predict-images'))
    ).groups(),
  )
  # Printed with four digits.
  assert right / count == pytest.approx(
    _score(notebook, 'train-images'), abs=1e-4
  )


def test_paths_add_up(notebook):
  text = _text(_cell(notebook, 'sum-of-paths'))
  assert float(re.search(r'equal to (\S+)', text)[1]) < 1e-5


def test_kept_run_learnt_something():
  for name, (_, _, least) in SCORES.items():
    assert _score(_kept(), name) >= least


def test_kept_file_is_small_and_of_no_machine():
  text = execute.NOTEBOOK.read_text()
  assert len(text) < 2e6
  assert not re.search(r'/(home|root|tmp|Users)\b', text)
  assert nbformat.writes(_kept()) + '\n' == text
