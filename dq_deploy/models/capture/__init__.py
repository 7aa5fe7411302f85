"""The step of a denoiser, written down on shapes alone, and what follows from it."""
