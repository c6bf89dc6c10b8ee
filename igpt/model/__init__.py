"""The network, its key/value cache and its cost formulas; it knows nothing of images."""
