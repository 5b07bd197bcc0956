r"""Compiles the update of a config for a TPU pod that need not be there.

    acmix-jax aot resnet50_acmix \
        --topology=v5e:16x16 --config.train.batch_size=65536 \
        --config.model.dtype=bfloat16 [--by_operation] [--json]

The real compiler (`pip install 'jax[tpu]'`) runs on any machine. It needs the
shapes of the batches, but no data. For each canvas of the training images and
for one chip it prints the memory, the bytes moved to and from it, the bytes
exchanged with other chips, and a lower bound of the time. Exit status 1 means
that the update does not fit; the fields to change are printed then.

The bound is the greater of two times: that of the products at the peak of
bfloat16, and that of the bytes at the bandwidth of the memory. Neither the
links between chips nor latencies are modelled: a real update takes longer.
What to expect is the share of its bound that a published training reached. A
loop whose length the data decide, as in NMS and RoIAlign, counts as one turn;
--by_operation says what a turn of each moves and multiplies.
"""

import argparse
import json
import sys
from collections.abc import Sequence

from acmix_jax.tools import config_file
from acmix_jax.tools.aot import compilation, roofline


def main(argv: Sequence[str] | None = None) -> int:
  """Returns the exit status: 1 for what does not fit, 2 for what is wrong."""
  parser = argparse.ArgumentParser(
    prog='acmix-jax aot',
    description='Compiles the update of a config for a TPU pod that need not '
    'be there. Fields of the config follow as --config.FIELD=VALUE.',
    allow_abbrev=False,
  )
  parser.add_argument('config', metavar='NAME|FILE.py[:ARGUMENT]')
  parser.add_argument('--topology', required=True, help='e.g. v5e:16x16')
  parser.add_argument(
    '--json', action='store_true', help='print a JSON line for each canvas'
  )
  parser.add_argument(
    '--by_operation',
    action='store_true',
    help='add the costliest operations, the modules they come from, and what '
    'a turn of a loop costs',
  )
  args, overrides = parser.parse_known_args(argv)
  try:
    config = config_file.load(args.config, overrides)
    fits = True
    for report in compilation.compile_updates(
      config, args.topology, by_operation=args.by_operation
    ):
      if args.json:
        print(json.dumps(roofline.as_json(report)))
      else:
        print(roofline.as_text(report))
      fits = fits and report.fits
  except (ImportError, ValueError) as error:
    print(f'aot: {error}', file=sys.stderr)
    return 2
  return 0 if fits else 1


if __name__ == '__main__':
  sys.exit(main())
