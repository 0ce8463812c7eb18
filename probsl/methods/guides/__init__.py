"""Guides, and the bound that they maximize."""
