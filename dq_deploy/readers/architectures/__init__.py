"""From a checkpoint's parameter names to the modules of diffusers."""
