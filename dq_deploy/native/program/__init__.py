"""The program: its instructions, memory and constants."""
