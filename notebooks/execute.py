r"""Executes the notebook and keeps its outputs in the file.

    python notebooks/execute.py [--folder=/content]

The notebook runs from its first cell to its last with the installed acmix_jax;
its files lie in the folder, which the outputs name: that of Colab by default.
Needed: pip install -e '.[notebook]'. An error in a cell ends this with it and
leaves the file as it was.
"""

import argparse
import pathlib
from collections.abc import Mapping

import nbclient
import nbformat

NOTEBOOK = pathlib.Path(__file__).with_name('acmix.ipynb')


def execute(
  folder: pathlib.Path, numbers: Mapping[str, int] | None = None, **kernel: dict
) -> nbformat.NotebookNode:
  """The notebook as it is after an execution.

  Args:
    folder: where it runs and writes.
    numbers: values of the variables of its cell 'parameters' in place of those
      there, by name.
    **kernel: of the process, such as its environment, `env`.

  Raises:
    nbclient.exceptions.CellExecutionError: a cell raised an error.
    ValueError: the cell has no variable of such a name.
  """
  notebook = nbformat.read(NOTEBOOK, as_version=4)
  (cell,) = (x for x in notebook.cells if x.id == 'parameters')
  for name, value in (numbers or {}).items():
    if f'{name} = ' not in cell.source:
      raise ValueError(f'The cell of parameters has no {name}: {cell.source}')
    cell.source += f'\n{name} = {value}'
  client = nbclient.NotebookClient(
    notebook,
    timeout=None,
    kernel_name='python3',
    record_timing=False,
    coalesce_streams=True,
    resources={'metadata': {'path': str(folder)}},
  )
  client.execute(**kernel)
  # Those of the machine's Python.
  notebook.metadata.language_info = {'name': 'python'}
  return notebook


def main() -> None:
  """Writes the file."""
  parser = argparse.ArgumentParser(description='Executes the notebook.')
  parser.add_argument('--folder', type=pathlib.Path, default='/content')
  folder = parser.parse_args().folder
  folder.mkdir(parents=True, exist_ok=True)
  nbformat.write(execute(folder), NOTEBOOK)


if __name__ == '__main__':
  main()
