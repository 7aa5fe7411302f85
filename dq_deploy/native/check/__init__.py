"""Whether a program that somebody else wrote stays inside its memory, for every batch, before any of it runs."""
