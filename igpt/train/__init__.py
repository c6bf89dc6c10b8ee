"""Anything that takes an optimiser step."""
