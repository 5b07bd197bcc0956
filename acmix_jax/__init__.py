"""ACmix and convolution-attention hybrids in JAX/Flax."""
