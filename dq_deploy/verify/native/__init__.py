"""The proof of a record on our own kernels."""
