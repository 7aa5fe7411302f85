"""From a folder of diffusers to a denoiser."""
