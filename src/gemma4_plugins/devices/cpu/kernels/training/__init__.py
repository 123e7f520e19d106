"""Kernels in C for training: see ``Operations.matmul`` and ``Operations.fused``."""

from gemma4_plugins.devices.cpu.kernels.training.fused import FUSED as FUSED
from gemma4_plugins.devices.cpu.kernels.training.products import matmul as matmul
