"""float_conv2d."""
