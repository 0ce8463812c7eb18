"""Graphs and compiled code of steps."""
