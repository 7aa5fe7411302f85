"""Compiling the kernels without a GPU."""
