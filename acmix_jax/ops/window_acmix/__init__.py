"""A layer of ACmix on window attention."""

from acmix_jax.ops.window_acmix.api import IMPLEMENTATIONS, window_acmix

__all__ = ['IMPLEMENTATIONS', 'window_acmix']
