"""Engines behind one Runner interface; an engine's library is imported only when it is opened."""
