"""Rounding of weights by second-order statistics of what a layer reads (GPTQ, arXiv 2210.17323)."""
