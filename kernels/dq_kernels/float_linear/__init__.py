"""float_linear."""
