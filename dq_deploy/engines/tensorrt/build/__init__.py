"""From an ONNX file to a plan, in a process of its own."""
