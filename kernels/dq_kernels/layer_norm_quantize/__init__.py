"""layer_norm_quantize."""
