"""Processors: the device plugin and its kernels."""
