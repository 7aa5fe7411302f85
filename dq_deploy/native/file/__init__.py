"""A native engine as one file: program, tables, parameters and packed weights, opened without torch.

It is read by mapping it into memory: nothing in it is executed, and nothing is copied but small tables.
"""

from __future__ import annotations

SUFFIX = ".dqn"
"""How the name of a program file ends."""
