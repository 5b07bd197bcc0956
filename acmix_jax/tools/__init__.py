"""Programs: acmix-jax NAME, or python -m acmix_jax.tools.NAME."""
