"""Factors that make channels easier to quantize."""
