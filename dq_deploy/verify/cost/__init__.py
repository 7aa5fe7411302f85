"""What quantizing costs, layer by layer."""
