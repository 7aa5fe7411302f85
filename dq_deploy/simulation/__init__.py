"""The integer layer in torch, as training sees it."""
