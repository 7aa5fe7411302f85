"""int_linear."""
