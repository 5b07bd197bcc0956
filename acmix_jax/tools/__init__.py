"""Programs: python -m acmix_jax.tools.NAME."""
