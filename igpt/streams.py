"""Named random streams: every draw comes from (seed, stream name, step, slot), none from a global.

A stream's draws therefore do not depend on how many workers, ranks or earlier draws there were, and
resuming at any step costs nothing. numpy only, so that data workers need not import torch.
"""

import hashlib

import numpy as np

Rng = np.random.Generator


def key_of(seed: int, name: str, step: int = 0, slot: int = 0) -> int:
    """A 128-bit key that is the same on every machine for the same four values."""
    text = f"{seed}/{name}/{step}/{slot}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=16).digest(), "little")


def stream(seed: int, name: str, step: int = 0, slot: int = 0) -> Rng:
    """The generator of one draw: a fresh Philox keyed by its four names."""
    return np.random.Generator(np.random.Philox(key=key_of(seed, name, step, slot)))


def torch_seed(seed: int, name: str, step: int = 0, slot: int = 0) -> int:
    """A seed for `torch.Generator.manual_seed`, named in the same way; 63 bits."""
    return key_of(seed, name, step, slot) >> 65
