"""The key/value cache of the sampler: fixed shape, filled from the left, read only where filled."""

import torch
from torch import Tensor


class LayerCache:
    """Keys and values of one block, each (B, H, T, E)."""

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
        *,
        n_layer: int,
        shape: tuple[int, int, int, int],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        """`shape` is (B, H, T, E) of one layer's keys."""
        self.layers = [
            LayerCache(
                torch.empty(shape, dtype=dtype, device=device),
                torch.empty(shape, dtype=dtype, device=device),
            )
            for _ in range(n_layer)
        ]

    @property
    def length(self) -> int:
        """Positions filled so far."""
        return self.layers[0].length
