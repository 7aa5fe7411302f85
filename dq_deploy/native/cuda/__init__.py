"""The program run by the GPU kernels."""
