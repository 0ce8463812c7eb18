"""Guides, and the evidence lower bound that they maximize."""
