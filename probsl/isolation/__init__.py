"""Isolates calls from process-wide state, and restores that state afterwards."""
