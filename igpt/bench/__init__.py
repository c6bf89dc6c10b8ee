"""Our work and other projects' side by side, on the same inputs, in one run."""
