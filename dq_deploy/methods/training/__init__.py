"""Training of scales, rounding and blocks against the float model."""
