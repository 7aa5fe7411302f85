"""Float graph and record to integer graph: one pass a file, in onnx-ir."""
