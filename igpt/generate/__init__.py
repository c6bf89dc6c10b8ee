"""Anything that yields a picture."""
