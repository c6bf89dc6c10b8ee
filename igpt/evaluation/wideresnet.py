"""Wide ResNet 28-2, trained on labels alone: what few-label results are set beside (paper §4.7).

Zagoruyko and Komodakis, "Wide Residual Networks", 2016, with the settings usual for few labels: SGD
with Nesterov momentum 0.9, rate 0.03 with a cosine to 0, weight decay 5e-4, crops and mirroring.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from igpt import compute, streams
from igpt.images.augment import crop_and_flip
from igpt.probing.features import cut
from igpt.probing.protocol import LabelledImages
from igpt.tokens.tokenizer import ImageArray


@dataclass(frozen=True, slots=True, kw_only=True)
class WideResNetConfig:
    """How the network looks and learns."""

    depth: int = 28
    """Convolutions in a row; 6 n + 4."""
    widen: int = 2
    """Times the channels of a plain residual network (16, 32, 64)."""
    total_steps: int = 1000
    """Optimiser updates."""
    batch_size: int = 64
    """Images an update; fewer where there are fewer."""
    lr: float = 0.03
    """Peak rate, at the first step."""
    weight_decay: float = 5e-4
    """Of all weights."""
    seed: int = 0
    """Of the weights, the order of images and their augmentation."""


class _Unit(nn.Module):
    """norm, relu, 3 x 3, norm, relu, 3 x 3, added to a shortcut."""

    def __init__(self, channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.norm_1 = nn.BatchNorm2d(channels)
        self.conv_1 = nn.Conv2d(channels, out_channels, 3, stride, 1, bias=False)
        self.norm_2 = nn.BatchNorm2d(out_channels)
        self.conv_2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.shortcut: nn.Module | None = None
        if channels != out_channels or stride != 1:
            self.shortcut = nn.Conv2d(channels, out_channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, S, S) -> (B, out_channels, S / stride, S / stride)."""
        active = F.relu(self.norm_1(x))
        straight = x if self.shortcut is None else self.shortcut(active)
        y = self.conv_2(F.relu(self.norm_2(self.conv_1(active))))
        return straight + y  # type: ignore[no-any-return]


class WideResNet(nn.Module):
    """Images (B, 3, S, S) float to class scores (B, C)."""

    def __init__(self, n_classes: int, *, depth: int, widen: int) -> None:
        super().__init__()
        n_units = (depth - 4) // 6
        channels = [16, 16 * widen, 32 * widen, 64 * widen]
        units: list[nn.Module] = [nn.Conv2d(3, channels[0], 3, 1, 1, bias=False)]
        for group in range(3):
            for index in range(n_units):
                before = channels[group] if index == 0 else channels[group + 1]
                stride = 2 if index == 0 and group > 0 else 1
                units.append(_Unit(before, channels[group + 1], stride))
        self.body = nn.Sequential(*units)
        self.norm = nn.BatchNorm2d(channels[-1])
        self.head = nn.Linear(channels[-1], n_classes)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, C)."""
        pooled = F.relu(self.norm(self.body(images))).mean(dim=(2, 3))
        return self.head(pooled)  # type: ignore[no-any-return]

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """He's initial weights for convolutions; the head starts small."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.out_channels * module.kernel_size[0] ** 2
                module.weight.normal_(0.0, math.sqrt(2 / fan_out), generator=generator)
            elif isinstance(module, nn.Linear):
                module.weight.normal_(0.0, 0.01, generator=generator)
                module.bias.zero_()


def train_wide_resnet(
    train: LabelledImages,
    *,
    n_classes: int,
    config: WideResNetConfig,
    device: torch.device | str = "cpu",
    progress: Callable[[int], None] | None = None,
) -> Callable[[ImageArray], np.ndarray]:
    """Train on these labels only; what comes back classifies (N, S, S, 3) uint8 images.

    Args:
        train: images and their classes from 0 to n_classes - 1.
        n_classes: C.
        config: how.
        device: where to train.
        progress: called with 1 after each step.

    Returns:
        (N, S, S, 3) uint8 -> (N,) int64.
    """
    with compute.drawing_apart():
        network = WideResNet(n_classes, depth=config.depth, widen=config.widen)
    seed = streams.torch_seed(config.seed, "wide-resnet")
    network.init_weights(torch.Generator().manual_seed(seed))
    network.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    mean, spread = _colour_scale(train.images)
    dtype = compute.choose_dtype("auto", torch.device(device))
    optimizer = torch.optim.SGD(
        network.parameters(),
        config.lr,
        momentum=0.9,
        nesterov=True,
        weight_decay=config.weight_decay,
    )
    size = min(config.batch_size, len(train.labels))
    for step in range(config.total_steps):
        rng = streams.stream(config.seed, "wide-resnet", step)
        rows = rng.permutation(len(train.labels))[:size]
        images = crop_and_flip(np.asarray(train.images[rows]), rng)
        for group in optimizer.param_groups:
            group["lr"] = 0.5 * config.lr * (1 + math.cos(math.pi * step / config.total_steps))
        with compute.autocast(torch.device(device), dtype):
            scores = network(_as_tensor(images, mean, spread, device))
        labels = torch.from_numpy(np.asarray(train.labels[rows], np.int64)).to(device)
        F.cross_entropy(scores.float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if progress is not None:
            progress(1)
    network.eval()

    def scores_of(part: np.ndarray) -> Tensor:
        with torch.inference_mode(), compute.autocast(torch.device(device), dtype):
            return network(_as_tensor(part, mean, spread, device))  # type: ignore[no-any-return]

    return lambda images: _likeliest(scores_of, images)


def _likeliest(scores_of: Callable[[np.ndarray], Tensor], images: ImageArray) -> np.ndarray:
    """(N, S, S, 3) uint8 -> (N,) int64, some images at a time."""
    found = np.empty(len(images), np.int64)  # in its place: see `KMeansFeatures.features`
    for rows in cut(len(images), 256):
        found[rows] = scores_of(np.asarray(images[rows])).argmax(dim=1).cpu().numpy()
    return found


def _colour_scale(images: ImageArray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel: (3,) float32 twice."""
    pixels = np.asarray(images[:]).reshape(-1, 3).astype(np.float32)
    return pixels.mean(axis=0), pixels.std(axis=0) + 1e-3


def _as_tensor(
    images: np.ndarray, mean: np.ndarray, spread: np.ndarray, device: torch.device | str
) -> Tensor:
    """(B, S, S, 3) uint8 -> (B, 3, S, S) float32 of mean 0 and variance 1, channels last."""
    scaled = torch.from_numpy((images - mean) / spread)
    return scaled.permute(0, 3, 1, 2).to(device)
