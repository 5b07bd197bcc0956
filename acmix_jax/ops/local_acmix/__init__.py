"""A layer of ACmix on local attention, in one operator."""

from acmix_jax.ops.local_acmix.api import IMPLEMENTATIONS, local_acmix

__all__ = ['IMPLEMENTATIONS', 'local_acmix']
