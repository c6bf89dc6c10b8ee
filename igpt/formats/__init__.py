"""Foreign checkpoints in and out, the Hub, and deployment."""
