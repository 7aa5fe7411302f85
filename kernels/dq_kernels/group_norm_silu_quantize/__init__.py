"""group_norm_silu_quantize."""
