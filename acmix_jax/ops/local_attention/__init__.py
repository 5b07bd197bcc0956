"""Attention of each pixel over the window around it."""

from acmix_jax.ops.local_attention.api import IMPLEMENTATIONS, local_attention

__all__ = ['IMPLEMENTATIONS', 'local_attention']
