"""int_conv2d."""
