"""How numbers lie in stored matrices: what formats read and write, and kernels compute from."""
