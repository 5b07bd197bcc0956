"""Pure functions on jax arrays."""
