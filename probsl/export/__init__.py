"""Exports fits as arrays, InferenceData and DataTree."""
