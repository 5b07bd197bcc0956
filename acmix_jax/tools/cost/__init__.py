"""Parameters and multiply-adds of models, counted without computing them."""

from acmix_jax.tools.cost.counting import Cost, Part, Stages, count

__all__ = ['Cost', 'Part', 'Stages', 'count']
