"""Bytes on disk to uint8 (H, W, 3) arrays and back; numpy and Pillow, no torch."""
