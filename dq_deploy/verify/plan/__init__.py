"""The proof of a TensorRT plan."""
