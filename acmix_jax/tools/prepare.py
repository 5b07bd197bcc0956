r"""Prepares a data set for training, without TensorFlow, or checks its labels.

    python -m acmix_jax.tools.prepare imagenet2012 \
        --source=DIR_OF_THE_TWO_TARS --data_dir=DIR [--resize_short=320]
    python -m acmix_jax.tools.prepare ade20k \
        --source=ADEChallengeData2016 --data_dir=DIR

Then train with --config.data.dir=DIR. The images are stored as distributed
(ImageNet: about 150 GB; as much again is needed while it runs).
`--resize_short=N` reduces their shorter sides to N pixels: less to read and
decode at every epoch, at the price of slightly softer large crops. ADE20K needs
no preparation; packed it is a few large files, as pods like to read them.

    python -m acmix_jax.tools.prepare ade20k --check=DIR
    python -m acmix_jax.tools.prepare segmentation_folder --check=DIR \
        --class_names=road,car [--ignored_label=255] [--zero_is_ignored]

reads all label files, and the images, and says what they hold, what is damaged
and what to set where the labels do not fit the classes. Options are those of
`config.data`.
"""

import argparse
import os
import sys
from collections.abc import Sequence

import ml_collections

from acmix_jax.data import label_audit, sources


def main(argv: Sequence[str] | None = None) -> int:
  """Returns the exit status.

  It is 1 for labels that cannot be trained on, 2 for wrong arguments or files
  that fail.
  """
  args = _parse(argv)
  try:
    return _check(args) if args.check else _prepare(args)
  except (OSError, ValueError) as error:
    print(f'prepare: {error}', file=sys.stderr)
    return 2


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    prog='python -m acmix_jax.tools.prepare',
    description='Prepares a data set for training, or checks its labels.',
  )
  parsers = parser.add_subparsers(dest='dataset', required=True)
  imagenet = parsers.add_parser('imagenet2012')
  imagenet.set_defaults(check='')
  imagenet.add_argument(
    '--resize_short',
    type=int,
    default=0,
    metavar='N',
    help='reduce shorter sides to N pixels (default: store as distributed)',
  )
  ade20k = parsers.add_parser('ade20k')
  for writer in (imagenet, ade20k):
    required = writer is imagenet
    writer.add_argument(
      '--source', required=required, help='folder with the official files'
    )
    writer.add_argument(
      '--data_dir', required=required, help='folder to write to; data.dir later'
    )
  folder = parsers.add_parser('segmentation_folder')
  folder.add_argument('--class_names', required=True, help='apart by commas')
  folder.add_argument('--ignored_label', type=int, default=255)
  folder.add_argument('--zero_is_ignored', action='store_true')
  for checked in (ade20k, folder):
    checked.add_argument(
      '--check',
      required=checked is folder,
      metavar='DIR',
      help='folder whose labels to check, data.dir',
    )
  args = parser.parse_args(argv)
  if not args.check and not (args.source and args.data_dir):
    ade20k.error('give --source and --data_dir, or --check')
  return args


def _prepare(args: argparse.Namespace) -> int:
  paths = {
    'source': os.path.expanduser(args.source),
    'data_dir': os.path.expanduser(args.data_dir),
  }
  # TFDS takes seconds to import.
  if args.dataset == 'ade20k':
    from acmix_jax.data.builders import ade20k

    builder = ade20k.Ade20k(**paths)
  else:
    from acmix_jax.data.builders import imagenet

    builder = imagenet.Imagenet2012(**paths, resize_short=args.resize_short)
  builder.download_and_prepare()
  for name, split in builder.info.splits.items():
    print(f'{name}: {split.num_examples} images')
  print(f'data.dir={builder.data_dir}')
  return 0


def _check(args: argparse.Namespace) -> int:
  config = ml_collections.ConfigDict({'name': args.dataset, 'dir': args.check})
  if args.dataset == 'segmentation_folder':
    config.class_names = tuple(args.class_names.split(','))
    config.ignored_label = args.ignored_label
    config.zero_is_ignored = args.zero_is_ignored
  failed = False
  for split in ('train', 'validation'):
    report = label_audit.audit(sources.make_source(config, split))
    print(f'{split}: {report}')
    failed |= bool(report.problems)
  return int(failed)


if __name__ == '__main__':
  sys.exit(main())
