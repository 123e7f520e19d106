"""Kernels in source form that device plugins bring, one folder per device family."""
