"""The key/value cache of the sampler: slots of fixed place, filled from the left.

One form for every way to draw: the network's own operators fill and read it eagerly, recorded as a
CUDA graph (`igpt.model.decoder`) and exported (`igpt.formats.onnx`).
"""

import torch
from torch import Tensor

from igpt.config import ModelConfig


class LayerCache:
    """Keys and values of one block while some tokens pass through it.

    Args:
        keys: (B, H, slots, E), changed in place.
        values: the same.
        filling: (n,) int64, the slots of the next n tokens.
        seen: (1, slots) bool, those that may be looked at; none: all of them.
    """

    def __init__(
        self, keys: Tensor, values: Tensor, filling: Tensor, seen: Tensor | None = None
    ) -> None:
        self.keys = keys
        self.values = values
        self.filling = filling
        self.seen = seen

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store (B, H, n, E); all of (B, H, slots, E)."""
        self.keys.index_copy_(2, self.filling, keys)
        self.values.index_copy_(2, self.filling, values)
        return self.keys, self.values


class KVCache:
    """The slots of all blocks, allocated once for whole images: keys and values (L, B, H, T, E)."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        batch_size: int,
        seq_len: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        head_width = config.n_embd // config.n_head
        shape = (config.n_layer, batch_size, config.n_head, seq_len, head_width)
        # What is hidden is multiplied by 0, so must be finite.
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.length = 0
        """Slots filled so far."""

    def layers(self, n_slots: int, filling: Tensor, seen: Tensor | None = None) -> list[LayerCache]:
        """One a block, which sees the first slots alone; arguments as those of `LayerCache`."""
        return [
            LayerCache(keys[:, :, :n_slots], values[:, :, :n_slots], filling, seen)
            for keys, values in zip(self.keys, self.values, strict=True)
        ]
