"""A simulation of image servers that replays measured times, beside queueing theory and the measured server."""
