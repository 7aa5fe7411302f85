"""geglu_quantize."""
