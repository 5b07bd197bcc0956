r"""Prepares a data set for training, without TensorFlow, or checks its labels.

    acmix-jax prepare imagenet2012 \
        --source=DIR_OF_THE_TWO_TARS --data_dir=DIR [--resize_short=320]
    acmix-jax prepare ade20k \
        --source=ADEChallengeData2016 --data_dir=DIR
    acmix-jax prepare coco2017 --source=COCO --data_dir=DIR

Then train with --config.data.dir=DIR. The images are stored as distributed
(ImageNet: about 150 GB; as much again is needed while it runs).
`--resize_short=N` reduces their shorter sides to N pixels: less to read and
decode at every epoch, at the price of slightly softer large crops. ADE20K and
COCO need no preparation; packed they are a few large files, as pods like to
read them.

    acmix-jax prepare ade20k --check=DIR
    acmix-jax prepare segmentation_folder --check=DIR \
        --class_names=road,car [--ignored_label=255] [--zero_is_ignored]

reads all label files, and the images, and says what they hold, what is damaged
and what to set where the labels do not fit the classes.

    acmix-jax prepare coco --check=DIR [--boxes_only] \
        [--train_annotations=train.json --train_images=images ...]

compares annotations in COCO format with the headers of all images. Options are
those of `config.data`.
"""

import argparse
import os
import sys
from collections.abc import Sequence

import ml_collections

from acmix_jax.data import label_audit, sources
from acmix_jax.data.sources import coco, coco_audit, coco_format

# Beginning of the names of the options -> split.
_COCO_PARTS = {'train': 'train', 'eval': 'validation'}


def main(argv: Sequence[str] | None = None) -> int:
  """Returns the exit status.

  It is 1 for labels that cannot be trained on, 2 for wrong arguments or files
  that fail.
  """
  args = _parse(argv)
  try:
    if not args.check:
      return _prepare(args)
    return _check_coco(args) if args.dataset == 'coco' else _check_labels(args)
  except (OSError, ValueError) as error:
    print(f'prepare: {error}', file=sys.stderr)
    return 2


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    prog='acmix-jax prepare',
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
  coco2017 = parsers.add_parser('coco2017')
  coco2017.set_defaults(check='')
  ade20k = parsers.add_parser('ade20k')
  for writer in (imagenet, ade20k, coco2017):
    required = writer is not ade20k
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
  own_coco = parsers.add_parser('coco')
  own_coco.add_argument(
    '--boxes_only', action='store_true', help='objects need no masks'
  )
  for part, split in _COCO_PARTS.items():
    path, images = coco.OFFICIAL[split]
    own_coco.add_argument(f'--{part}_annotations', default=path, metavar='JSON')
    own_coco.add_argument(f'--{part}_images', default=images, metavar='DIR')
  for checked in (ade20k, folder, own_coco):
    checked.add_argument(
      '--check',
      required=checked is not ade20k,
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
  elif args.dataset == 'coco2017':
    from acmix_jax.data.builders import coco as coco_builder

    builder = coco_builder.Coco2017(**paths)
  else:
    from acmix_jax.data.builders import imagenet

    builder = imagenet.Imagenet2012(**paths, resize_short=args.resize_short)
  builder.download_and_prepare()
  for name, split in builder.info.splits.items():
    print(f'{name}: {split.num_examples} images')
  print(f'data.dir={builder.data_dir}')
  return 0


def _check_coco(args: argparse.Namespace) -> int:
  failed = False
  home = os.path.expanduser(args.check)
  for part, split in _COCO_PARTS.items():
    path, folder = (
      os.path.join(home, getattr(args, f'{part}_{kind}'))
      for kind in ('annotations', 'images')
    )
    try:
      report = coco_audit.check(
        coco_format.read(path),
        folder,
        path,
        with_masks=not args.boxes_only,
        training=split == 'train',
        all_sizes=True,
      )
    except ValueError as error:
      failed, report = True, [str(error)]
    print('\n  '.join([f'{split}:', *report]))
  return int(failed)


def _check_labels(args: argparse.Namespace) -> int:
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
