"""Packed sets: what they are on disk (format), written, read, and merged of their parts."""
