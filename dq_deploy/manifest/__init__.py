"""What an exported file says of itself, written and checked here only."""
