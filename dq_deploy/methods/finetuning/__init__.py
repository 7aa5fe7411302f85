"""Finetuning of a whole quantized model, as a method of its own or as the last stage of another."""
