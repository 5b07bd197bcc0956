"""Scopes (`jax.named_scope`) by which tools.cost knows what to count."""

# A convolution that only copies.
COPY = 'unfold'
# Elementwise products that a sum completes.
MULTIPLY_ADD = 'multiply_add'
# Products that resize a map.
RESIZE = 'resize'
