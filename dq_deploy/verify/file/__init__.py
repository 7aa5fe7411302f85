"""What the file holds against what the record says."""
