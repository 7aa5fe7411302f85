"""Every operation of torch's core set as numpy, for what no kernel does: one function each, by its name in torch."""
