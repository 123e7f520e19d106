"""NVIDIA GPUs through CUDA: the device plugin and its kernels."""
