"""From tensors to launched kernels."""
