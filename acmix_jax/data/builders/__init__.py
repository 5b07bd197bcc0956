"""Builders of data sets in the storage format of TFDS."""
