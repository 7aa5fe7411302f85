"""Parts of kernels, in Triton."""
