"""Backbones: images to maps of several stages."""
