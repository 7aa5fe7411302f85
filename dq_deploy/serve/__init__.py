"""The image server: requests at different denoising steps share the calls of one engine."""
