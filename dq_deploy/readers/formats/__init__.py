"""The checkpoint formats, one file each, and what several of them share."""
