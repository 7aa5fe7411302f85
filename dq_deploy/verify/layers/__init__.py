"""Codes and accumulators of a layer, compared with the numerics."""
