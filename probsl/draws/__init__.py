"""Draws from a fit: predictions, scores and summaries."""
