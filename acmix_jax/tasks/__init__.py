"""Problems to train on."""

from acmix_jax.tasks.task import Batches, Evaluator, Task, make_task

__all__ = ['Batches', 'Evaluator', 'Task', 'make_task']
