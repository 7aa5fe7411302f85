"""From traced operations to instructions of the kernels."""
