"""Trains or evaluates a model, in a clone.

  python main.py --config=configs/digits_acmix.py --workdir=DIR
  python main.py --config=configs/digits_acmix.py --workdir=DIR --mode=eval

See acmix_jax/tools/train.py.
"""

import sys

from acmix_jax.tools import train

if __name__ == '__main__':
  sys.exit(train.main())
