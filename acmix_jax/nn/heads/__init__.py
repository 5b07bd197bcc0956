"""Heads and necks of dense prediction on a backbone's stages."""
