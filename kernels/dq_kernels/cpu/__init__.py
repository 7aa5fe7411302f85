"""The CPU library of the kernels: how it is built, loaded and called."""
