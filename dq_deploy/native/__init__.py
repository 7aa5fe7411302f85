"""A record run by our own kernels: traced to a program of one step, on a CPU without torch or in one CUDA graph."""
