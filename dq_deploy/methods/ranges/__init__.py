"""Activation ranges and weight scales from calibration data."""
