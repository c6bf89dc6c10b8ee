"""Anything that yields a reported number."""
