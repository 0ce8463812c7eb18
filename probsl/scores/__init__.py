"""Scores of a fit's predictions."""
