"""GPU memory, streams and arrays, by cuda-core or pycuda."""
