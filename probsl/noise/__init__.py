"""Random numbers as inputs of a program."""
