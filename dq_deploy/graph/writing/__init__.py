"""The parts of which every target writes an integer layer."""
