"""TensorRT and TensorRT-RTX: building plans, reading them, running them."""
