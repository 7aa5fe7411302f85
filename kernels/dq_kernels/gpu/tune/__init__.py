"""Which block sizes are fastest, and the table of what was found."""
