"""The proof of an ONNX file."""
