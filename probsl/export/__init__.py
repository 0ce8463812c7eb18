"""Fits as arrays and files."""
