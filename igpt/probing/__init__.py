"""The linear probe: features of every layer, what fits them, and the protocol around it."""
