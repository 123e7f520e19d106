"""CPU kernels in C, compiled by tinygrad's own compiler for the machine they run on."""
