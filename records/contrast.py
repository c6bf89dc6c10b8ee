"""SimCLR, small: the label-free rival that compares whole images (Chen et al. 2020).

Two random views of each image (crop, mirror, colour, grey) must be nearer to each other than to
the views of all other images of the batch. The network is that of the supervised rival; features
are its pooled last channels, before the head that the loss sees.

Chen, Kornblith, Norouzi and Hinton, "A Simple Framework for Contrastive Learning of Visual
Representations", 2020: views, loss and head; Adam in place of LARS, as batches are small.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from igpt import compute, streams
from igpt.evaluation.wideresnet import WideResNet
from igpt.probing.features import cut
from igpt.tokens.tokenizer import ImageArray

DEVICE = torch.device("cpu")
# Of red, green and blue in grey.
LUMA = torch.tensor([0.299, 0.587, 0.114])
SMALLEST_CROP = 0.2
COLOURS = 0.4
GREY = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class ContrastConfig:
    """How the network looks and learns."""

    depth: int = 28
    widen: int = 2
    cpu_minutes: float = 20.0
    """Of this process, compiling nothing; the rate falls with them as a cosine."""
    batch_size: int = 256
    """Images a step; each is seen twice."""
    temperature: float = 0.5
    lr: float = 2e-3
    weight_decay: float = 1e-4
    width: int = 128
    """Of the space in which views are compared."""
    seed: int = 0


def train_contrast(
    images: np.ndarray, config: ContrastConfig
) -> tuple[Callable[[ImageArray], np.ndarray], int]:
    """The features of a network trained without labels, and the images that it saw.

    Args:
        images: (N, S, S, 3) uint8.
        config: how.

    Returns:
        (n, S, S, 3) uint8 -> (n, D) float32; images seen.
    """
    with compute.drawing_apart():
        network = WideResNet(config.width, depth=config.depth, widen=config.widen)
    n_channels = network.head.in_features
    generator = torch.Generator().manual_seed(streams.torch_seed(config.seed, "contrast"))
    network.init_weights(generator)
    hidden, out = nn.Linear(n_channels, n_channels), nn.Linear(n_channels, config.width)
    with torch.no_grad():
        for layer in (hidden, out):
            layer.weight.normal_(0.0, n_channels**-0.5, generator=generator)
            layer.bias.zero_()
    network.head = nn.Sequential(hidden, nn.ReLU(), out)  # type: ignore[assignment]
    network.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    dtype = compute.choose_dtype("auto", DEVICE)
    optimizer = torch.optim.AdamW(network.parameters(), config.lr, weight_decay=config.weight_decay)
    start_s, step = time.process_time(), 0
    while (done := (time.process_time() - start_s) / (60 * config.cpu_minutes)) < 1:
        rng = streams.stream(config.seed, "contrast", step)
        chosen = rng.choice(len(images), config.batch_size, replace=False)
        pixels = as_pixels(images[chosen])
        seen = torch.cat([view(pixels, generator), view(pixels, generator)])
        with compute.autocast(DEVICE, dtype):
            found = network(seen.contiguous(memory_format=torch.channels_last))
        contrast_loss(found.float(), config.temperature).backward()
        for group in optimizer.param_groups:
            group["lr"] = 0.5 * config.lr * (1 + math.cos(math.pi * done))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        if step % 50 == 0:
            print(f"contrast: step {step}, {done:.0%}", flush=True)
    network.eval()
    network.head = nn.Identity()  # type: ignore[assignment]

    @torch.inference_mode()
    def features(some: ImageArray) -> np.ndarray:
        result = np.empty((len(some), n_channels), np.float32)
        for rows in cut(len(some), 256):
            with compute.autocast(DEVICE, dtype):
                found = network(centred(as_pixels(some[rows])))
            result[rows] = found.float().numpy()
        return result

    return features, step * config.batch_size


def contrast_loss(found: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of finding each row's other view among all: (2 B, W) -> ()."""
    unit = F.normalize(found, dim=1)
    alike = (unit @ unit.T / temperature).fill_diagonal_(-math.inf)
    n = len(found) // 2
    other = torch.cat([torch.arange(n, 2 * n), torch.arange(n)])
    return F.cross_entropy(alike, other)


def as_pixels(images: np.ndarray) -> Tensor:
    """(B, S, S, 3) uint8 -> (B, 3, S, S) float32 from 0 to 1."""
    pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)
    return pixels.float().div(255)


def centred(pixels: Tensor) -> Tensor:
    """From 0 to 1 -> about -2 to 2."""
    return (pixels - 0.5) / 0.25


def view(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """A random view of each image: (B, 3, S, S) from 0 to 1 -> the same shape, centred."""
    n = len(pixels)

    def drawn(low: float, high: float) -> Tensor:
        return torch.empty(n).uniform_(low, high, generator=generator)

    # A crop of a random area and shape, anywhere, as an affine map of places from -1 to 1.
    area, shape = drawn(SMALLEST_CROP, 1), drawn(math.log(3 / 4), math.log(4 / 3)).exp()
    width, height = ((area * s).sqrt().clamp(max=1) for s in (shape, 1 / shape))
    mirror = drawn(-1, 1).sign()
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = width * mirror, height
    theta[:, 0, 2], theta[:, 1, 2] = drawn(-1, 1) * (1 - width), drawn(-1, 1) * (1 - height)
    places = F.affine_grid(theta, list(pixels.shape), align_corners=False)
    seen = F.grid_sample(pixels, places, padding_mode="reflection", align_corners=False)

    def each(values: Tensor) -> Tensor:
        return values[:, None, None, None]

    def grey(image: Tensor) -> Tensor:
        return (image * LUMA[:, None, None]).sum(1, keepdim=True)

    # Brightness, contrast, saturation, and instead of a turn of hue a cast of colour.
    some = each(drawn(0, 1) < 0.8)
    strong = seen * each(drawn(1 - COLOURS, 1 + COLOURS))
    level = grey(strong).mean(dim=(2, 3), keepdim=True)
    strong = level + (strong - level) * each(drawn(1 - COLOURS, 1 + COLOURS))
    strong = grey(strong) + (strong - grey(strong)) * each(drawn(1 - COLOURS, 1 + COLOURS))
    cast = torch.empty(n, 3, 1, 1).uniform_(-0.1, 0.1, generator=generator)
    seen = torch.where(some, (strong + cast).clamp(0, 1), seen)
    return centred(torch.where(each(drawn(0, 1) < GREY), grey(seen), seen))
