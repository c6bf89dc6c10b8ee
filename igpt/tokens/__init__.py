"""Colours to integers and back, and the seeded, resumable stream of batches."""
