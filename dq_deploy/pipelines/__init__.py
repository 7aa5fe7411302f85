"""Engines inside the pipelines of diffusers."""
