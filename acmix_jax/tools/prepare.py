r"""Prepares a data set for training, without TensorFlow.

    python -m acmix_jax.tools.prepare imagenet2012 \
        --source=DIR_OF_THE_TWO_TARS --data_dir=DIR [--resize_short=320]

Then train with --config.data.name=imagenet2012 --config.data.dir=DIR. The
images are stored as distributed (about 150 GB; as much again is needed while it
runs). `--resize_short=N` reduces their shorter sides to N pixels: less to read
and decode at every epoch, at the price of slightly softer large crops.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from acmix_jax.data.builders import imagenet


def main(argv: Sequence[str] | None = None) -> int:
  """Returns the exit status: 2 for wrong arguments, or files that fail."""
  parser = argparse.ArgumentParser(
    prog='python -m acmix_jax.tools.prepare',
    description='Prepares a data set for training, without TensorFlow.',
  )
  parser.add_argument('dataset', choices=['imagenet2012'])
  parser.add_argument(
    '--source', required=True, help='folder with the official archives'
  )
  parser.add_argument(
    '--data_dir', required=True, help='folder to write to; data.dir later'
  )
  parser.add_argument(
    '--resize_short',
    type=int,
    default=0,
    metavar='N',
    help='reduce shorter sides to N pixels (default: store as distributed)',
  )
  args = parser.parse_args(argv)
  try:
    builder = imagenet.Imagenet2012(
      source=os.path.expanduser(args.source),
      resize_short=args.resize_short,
      data_dir=os.path.expanduser(args.data_dir),
    )
    builder.download_and_prepare()
  except (OSError, ValueError) as error:
    print(f'prepare: {error}', file=sys.stderr)
    return 2
  for name, split in builder.info.splits.items():
    print(f'{name}: {split.num_examples} images')
  print(f'data.dir={builder.data_dir}')
  return 0


if __name__ == '__main__':
  sys.exit(main())
