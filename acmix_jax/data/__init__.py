"""Images from disk to batches of numpy arrays; no jax device is touched."""
