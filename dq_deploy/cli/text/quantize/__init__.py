"""What `dq-quantize` prints, and the options it takes."""
