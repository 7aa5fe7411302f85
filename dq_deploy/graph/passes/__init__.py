"""One rewrite of a graph a file, named after its target."""
