"""The blocks of a model in turn, and what every calibration input is before and behind each of them."""
