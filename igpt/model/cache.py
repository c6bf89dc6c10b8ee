"""The key/value cache of the sampler: fixed shape, filled from the left, read only where filled."""

import torch
from torch import Tensor

from igpt.config import ModelConfig


class LayerCache:
    """Keys and values of one block, each (B, H, T, E)."""

    seen: Tensor | None = None
    """Which of what `append` returns may be looked at, bool; none: all of it."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys = keys
        self.values = values
        self.length = 0

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store (B, H, n, E) after what is held; views of everything held, (B, H, length, E)."""
        start, self.length = self.length, self.length + keys.shape[2]
        self.keys[:, :, start : self.length] = keys
        self.values[:, :, start : self.length] = values
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]


class KVCache:
    """One `LayerCache` a block, allocated once for whole images."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        batch_size: int,
        seq_len: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (batch_size, config.n_head, seq_len, config.n_embd // config.n_head)
        self.layers = [
            LayerCache(
                torch.empty(shape, dtype=dtype, device=device),
                torch.empty(shape, dtype=dtype, device=device),
            )
            for _ in range(config.n_layer)
        ]

    @property
    def length(self) -> int:
        """Positions filled so far."""
        return self.layers[0].length
