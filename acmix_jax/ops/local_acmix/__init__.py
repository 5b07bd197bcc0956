"""Both paths of ACmix from the same queries, keys and values."""

from acmix_jax.ops.local_acmix.api import IMPLEMENTATIONS, local_acmix

__all__ = ['IMPLEMENTATIONS', 'local_acmix']
