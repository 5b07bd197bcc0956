"""Kernels for CPU in C++."""
