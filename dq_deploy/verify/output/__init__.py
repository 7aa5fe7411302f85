"""The float path and the outputs, compared with the simulation."""
