"""What a plan says of its layers, read without a GPU."""
