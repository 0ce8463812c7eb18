"""Deterministic minimizers."""
