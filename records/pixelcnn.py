"""A small PixelCNN on the same tokens, to set a likelihood beside.

Van den Oord et al., "Pixel Recurrent Neural Networks", 2016: convolutions that see only what comes
before in raster order, with residual blocks of 1 x 1, masked 3 x 3, 1 x 1.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from igpt import streams
from igpt.errors import UserError
from igpt.probing.features import TokenSource
from igpt.tokens.batches import BatchStream


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelCNNConfig:
    """How the network looks and learns."""

    width: int = 64
    """Channels of the residual stream; the masked convolutions have half."""
    n_blocks: int = 6
    """Residual blocks."""
    total_steps: int = 1000
    """Optimiser updates."""
    batch_size: int = 32
    """Images an update."""
    lr: float = 2e-3
    """Peak learning rate of Adam, with a cosine to 0."""
    seed: int = 0
    """Of the weights and the order of images."""


class _MaskedConv(nn.Conv2d):
    """A convolution that sees pixels before its own in raster order; `own`: and its own."""

    def __init__(self, channels: int, out_channels: int, size: int, *, own: bool) -> None:
        super().__init__(channels, out_channels, size, padding=size // 2)
        mask = torch.ones(size, size)
        middle = size // 2
        mask[middle, middle + own :] = 0
        mask[middle + 1 :] = 0
        self.mask: Tensor
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, S, S) -> (B, out_channels, S, S)."""
        return F.conv2d(x, self.weight * self.mask, self.bias, padding=self.padding)


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.narrow = nn.Conv2d(width, width // 2, 1)
        self.look = _MaskedConv(width // 2, width // 2, 3, own=True)
        self.widen = nn.Conv2d(width // 2, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, S, S) -> the same."""
        y = self.look(F.relu(self.narrow(F.relu(x))))
        return x + self.widen(F.relu(y))  # type: ignore[no-any-return]


class PixelCNN(nn.Module):
    """Tokens (B, S * S) to logits (B, S * S, K); slot t sees tokens before t only."""

    def __init__(self, config: PixelCNNConfig, *, n_colors: int, image_size: int) -> None:
        super().__init__()
        self.image_size = image_size
        self.embed = nn.Embedding(n_colors, config.width)
        self.first = _MaskedConv(config.width, config.width, 7, own=False)
        self.blocks = nn.Sequential(*(_Block(config.width) for _ in range(config.n_blocks)))
        self.head = nn.Conv2d(config.width, n_colors, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T) int64 -> (B, T, K) float32."""
        side = self.image_size
        x = self.embed(tokens.view(-1, side, side)).permute(0, 3, 1, 2)  # (B, width, S, S)
        y = self.head(F.relu(self.blocks(self.first(x))))
        return y.flatten(2).transpose(1, 2)  # type: ignore[no-any-return]

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """He's initial weights for convolutions; the head starts at zero."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_in = module.in_channels * module.kernel_size[0] ** 2
                module.weight.normal_(0.0, math.sqrt(2 / fan_in), generator=generator)
                assert module.bias is not None
                module.bias.zero_()
        self.embed.weight.normal_(0.0, 1.0, generator=generator)
        self.head.weight.zero_()


def pixelcnn_nats(
    train: np.ndarray,
    tokens: TokenSource,
    *,
    n_colors: int,
    config: PixelCNNConfig,
    device: torch.device | str = "cpu",
    progress: Callable[[int], None] | None = None,
) -> float:
    """Nats per token of a PixelCNN trained on other images of the same palette.

    Args:
        train: (M, T) integers to learn from, indexed by integer arrays.
        tokens: (N, T) integers to judge.
        n_colors: K.
        config: how.
        device: where to train.
        progress: called with 1 after each step.

    Raises:
        UserError: the tokens are not one a pixel of a square image.
    """
    side = math.isqrt(train.shape[1])
    if side * side != train.shape[1]:
        raise UserError(f"{train.shape[1]} tokens are no square image: PixelCNN needs a palette")
    network = PixelCNN(config, n_colors=n_colors, image_size=side)
    seed = streams.torch_seed(config.seed, "pixelcnn")
    network.init_weights(torch.Generator().manual_seed(seed))
    network.to(device)
    optimizer = torch.optim.Adam(network.parameters(), config.lr, betas=(0.9, 0.95))
    size = min(config.batch_size, len(train))
    stream = BatchStream(train, None, None, batch_size=size, seed=config.seed, name="pixelcnn")
    for step in range(config.total_steps):
        for group in optimizer.param_groups:
            group["lr"] = 0.5 * config.lr * (1 + math.cos(math.pi * step / config.total_steps))
        _loss(network, stream.at(step).tokens, device).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if progress is not None:
            progress(1)
    total = 0.0
    with torch.inference_mode():
        for start in range(0, len(tokens), size):
            part = np.asarray(tokens[start : start + size]).astype(np.int64)
            total += float(_loss(network, part, device)) * len(part)
    return total / len(tokens)


def _loss(network: PixelCNN, tokens: np.ndarray, device: torch.device | str) -> Tensor:
    """Mean -log p over (B, T) tokens, nats."""
    batch = torch.from_numpy(tokens).to(device)
    return F.cross_entropy(network(batch).flatten(0, 1), batch.flatten())
