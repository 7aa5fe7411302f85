"""Bits a layer by the layer's measured sensitivity."""
