"""The program run by the CPU kernels."""
