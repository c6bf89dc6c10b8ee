"""Features of every layer: each image seen once, pooled over positions, kept on disk (paper §2.4).

f^l is the mean over positions of n^l, the normalised input of block l (after the last block, of the
final norm). All L + 1 layers come out of one forward pass.
"""

import copy
import functools
import hashlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from igpt import caches, compute, files, system
from igpt.config import N_BANDS, N_POOLED, Pooling, TrainConfig
from igpt.errors import NOT_FINITE, UserError
from igpt.manifest import damaged
from igpt.model.compiling import compile_blocks
from igpt.model.gpt import GPT, NORM_EPS, weights_digest
from igpt.progress import say
from igpt.tokens.masks import own_masks
from igpt.train.distributed import ALONE, World, in_order

# Part of the key of a kept file: raise it when the same inputs give other numbers.
CACHE_VERSION = 3

# In every place of a vector that stands for no image; no features are this.
LEFT_OUT = -math.inf

# A batch whose activations stay in the caches of a CPU; a GPU wants more work at a time.
BATCH_TOKENS = {"cpu": 4096, "cuda": 2**17}

# From here on, compiling the blocks for a CPU (10 s) costs less than the 30 % that it saves.
COMPILE_FROM_TOKENS = 2**21


class TokenSource(Protocol):
    """(N, T) tokens that can be read a slice at a time: an array, or encoded while being read."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> np.ndarray: ...


class FeatureTarget(Protocol):
    """What takes features as they come: an array, or one that writes them on."""

    def __setitem__(self, place: tuple[slice, slice], values: np.ndarray, /) -> None: ...


class EncodedImages:
    """A `TokenSource` over images that are turned into tokens only as they are read.

    Args:
        images: (N, S, S, 3) uint8, read a slice at a time.
        encode: (n, S, S, 3) uint8 -> (n, T) int64.
    """

    def __init__(self, images: Any, encode: Callable[[np.ndarray], np.ndarray]) -> None:
        self._images = images
        self._encode = encode

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, rows: slice, /) -> np.ndarray:
        return self._encode(np.asarray(self._images[rows]))


def extract_features(
    network: GPT,
    tokens: TokenSource,
    *,
    layers: Sequence[int] | None = None,
    normalised: bool = True,
    pooling: Pooling = "mean",
    mask_prob: float = TrainConfig().mask_prob,
    mask_seed: int = 0,
    precision: compute.Precision = "auto",
    batch_size: int | None = None,
    keep: bool = True,
    progress: Callable[[int], None] | None = None,
    world: World = ALONE,
) -> np.ndarray:
    """Pooled features of all images at the chosen layers, in one pass that stops at the last one.

    Args:
        network: on the device to use; its weights are not changed.
        tokens: (N, T) integers.
        layers: increasing numbers from 0 to L; none: all L + 1.
        normalised: the paper's features; otherwise the raw residual stream.
        pooling: over positions: mean, the paper's; bands, see `banded`.
        mask_prob: BERT only, the share of positions masked, as in training.
        mask_seed: BERT only, seed of the masks.
        precision: of the matrix products; pooling is float32 always.
        batch_size: images a forward pass; none: as many as suit the device.
        keep: read the result from the cache folder, or leave it there for the next call.
        progress: called with the number of images done after each batch.
        world: processes that take turns at the batches; the first one gets the features.

    Returns:
        (len(layers), N, D) float32, bands: 5 D; a read-only memory map where it was kept. On every
        process but the first, of 0 images.

    Raises:
        UserError: no images, tokens of another length, or a layer that the network has not.
    """
    chosen = _checked_layers(network, layers)
    check_tokens(network, tokens)
    dtype = compute.choose_dtype(precision, network.wpe.weight.device)
    shape = (len(chosen), len(tokens), network.config.n_embd * N_POOLED[pooling])
    fill = functools.partial(
        stream_features,
        network=network,
        tokens=tokens,
        layers=chosen,
        normalised=normalised,
        pooling=pooling,
        mask_prob=mask_prob,
        mask_seed=mask_seed,
        precision=precision,
        batch_size=batch_size,
        progress=progress,
        world=world,
    )
    if not world.is_first:
        if not keep or world.from_first(0):
            fill(np.empty(0))
        return np.empty((shape[0], 0, shape[2]), np.float32)
    if not keep:
        result = np.empty(shape, np.float32)
        fill(result)
        return result
    masks = ("own", mask_prob, mask_seed) if network.objective == "bert" else None
    options = (CACHE_VERSION, shape, chosen, normalised, pooling, masks, str(dtype))
    parts = (weights_digest(network), tokens_digest(tokens), *options)
    name = hashlib.sha256(repr(parts).encode()).hexdigest()[:32]
    path = files.cache_folder() / "features" / f"{name}.npy"
    is_missing = not _is_intact(path)
    world.from_first(int(is_missing))
    if is_missing:
        _filled(path, shape, fill)
    caches.used(_seal(path))
    caches.used(path)
    return np.load(path, mmap_mode="r", allow_pickle=False)  # type: ignore[no-any-return]


def stream_features(
    target: FeatureTarget,
    network: GPT,
    tokens: TokenSource,
    *,
    layers: Sequence[int] | None = None,
    normalised: bool = True,
    pooling: Pooling = "mean",
    mask_prob: float = TrainConfig().mask_prob,
    mask_seed: int = 0,
    precision: compute.Precision = "auto",
    batch_size: int | None = None,
    is_good: np.ndarray | None = None,
    progress: Callable[[int], None] | None = None,
    world: World = ALONE,
) -> None:
    """Hand pooled features on as they are made, a batch at a time; nothing is kept.

    Args are those of `extract_features`, and

    Args:
        target: gets `target[:, rows] = (len(layers), n, D) float32`, rows in order; of several
            processes, the first one's.
        is_good: (N,) bool, known for an image once its tokens are read: others give `LEFT_OUT`.
    """
    chosen = _checked_layers(network, layers)
    check_tokens(network, tokens)
    device = network.wpe.weight.device
    dtype = compute.choose_dtype(precision, device)
    if batch_size is None:
        batch_size = max(1, compute.batch_of(BATCH_TOKENS, device) // network.seq_len)
    pays = pays_to_compile(len(tokens) * network.seq_len, device)
    model = compiled_copy(network) if pays else network
    stretches = cut(len(tokens), batch_size)
    width = network.config.n_embd * N_POOLED[pooling]

    def pooled(number: int) -> Tensor:
        rows = stretches[number]
        batch, masked = token_batch(network, tokens, rows, mask_prob, mask_seed)
        if number and len(batch) < batch_size:  # compiled blocks would be compiled anew
            batch = _padded(batch, batch_size)
            masked = None if masked is None else _padded(masked, batch_size)
        found = pooled_layers(
            model, batch, masked, layers=chosen, normalised=normalised, pooling=pooling
        )
        found = found[:, : rows.stop - rows.start].cpu()
        if not found.isfinite().all():
            raise UserError(NOT_FINITE)
        if is_good is not None:
            found[:, torch.from_numpy(~is_good[rows])] = LEFT_OUT
        return found

    def shape(number: int) -> tuple[int, int, int]:
        return len(chosen), stretches[number].stop - stretches[number].start, width

    with torch.inference_mode(), compute.autocast(device, dtype):
        found = in_order(len(stretches), world, pooled, shape)
        for rows, features in zip(stretches, found, strict=False):
            target[:, rows] = features.numpy()
            if progress is not None:
                progress(rows.stop - rows.start)


def cut(n: int, size: int) -> list[slice]:
    """The numbers below n in stretches of `size`, the last one shorter."""
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


def pooled_layers(
    network: GPT,
    tokens: Tensor,
    masked: Tensor | None,
    *,
    layers: Sequence[int],
    normalised: bool = True,
    pooling: Pooling = "mean",
) -> Tensor:
    """Features of one batch; nothing past the last of `layers` is computed.

    Args:
        network: any.
        tokens: (B, T) int64.
        masked: (B, T) bool, BERT only.
        layers: increasing.
        normalised: the paper's features, or the raw residual stream.
        pooling: over positions.

    Returns:
        (len(layers), B, D) float32, bands: 5 D.
    """
    pooled = []
    for layer, h in enumerate(network.hidden(tokens, masked)):
        if layer in layers and pooling == "bands":
            pooled.append(_normalised_bands(network, layer, h) if normalised else banded(h))
        elif layer in layers and normalised:
            pooled.append(_normalised_mean(network, layer, h))
        elif layer in layers:
            pooled.append(h.mean(dim=1, dtype=torch.float32))
        if layer == layers[-1]:
            break
    return torch.stack(pooled)


def pays_to_compile(n_tokens: int, device: torch.device) -> bool:
    """Whether so many tokens of work repay the time that compiling the blocks takes."""
    many = n_tokens >= COMPILE_FROM_TOKENS
    return many and device.type == "cpu" and compute.has_compiler()


def compiled_copy(network: GPT) -> GPT:
    """With blocks compiled for one shape; the network itself must stay free to take any."""
    copied = copy.deepcopy(network)
    compile_blocks(copied)
    return copied


def _padded(rows: Tensor, size: int) -> Tensor:
    """`size` rows, the first one repeated at the end."""
    return torch.cat([rows, rows[:1].expand(size - len(rows), -1)])


def banded(x: Tensor) -> Tensor:
    """Means over four bands of rows, then the spread over all positions: (B, T, D) -> (B, 5 D).

    An autoregressive network knows more the further down it looks, and how much its activations
    vary tells of texture; the mean of all positions keeps neither.
    """
    x = x.float()
    bands = [band.mean(dim=1) for band in x.tensor_split(N_BANDS, dim=1)]
    return torch.cat([*bands, x.std(dim=1, correction=0)], dim=1)


def mean_of_bands(features: np.ndarray) -> np.ndarray:
    """The mean over all positions, from bands of equally many rows: (..., 5 D) -> (..., D)."""
    width = features.shape[-1] // N_POOLED["bands"]
    found = sum(features[..., band * width : (band + 1) * width] for band in range(N_BANDS))
    return np.asarray(found / N_BANDS, np.float32)


def _normalised_mean(network: GPT, layer: int, h: Tensor) -> Tensor:
    """Mean over T of `network.normalised(layer, h)`, (B, T, D) -> (B, D) float32.

    The norm scales each position by one number, so the mean is a product of a row with h: the
    normalised (B, T, D) is never written, which halves the time of pooling.
    """
    scale, gain = _scale_and_gain(network, layer, h)
    with torch.autocast(h.device.type, enabled=False):
        mean = torch.bmm(scale.unsqueeze(1) / h.shape[1], h.float()).squeeze(1)  # (B, D)
    return mean * gain


def _normalised_bands(network: GPT, layer: int, h: Tensor) -> Tensor:
    """`banded` of `network.normalised(layer, h)`, (B, T, D) -> (B, 5 D), in the same way."""
    scale, gain = _scale_and_gain(network, layer, h)
    n_tokens = h.shape[1]
    share = torch.zeros(N_BANDS, n_tokens, dtype=torch.float32, device=h.device)
    for row, slots in zip(share, torch.arange(n_tokens).tensor_split(N_BANDS), strict=True):
        row[slots] = 1 / len(slots)
    with torch.autocast(h.device.type, enabled=False):
        x = h.float()
        means = torch.bmm(share * scale.unsqueeze(1), x)  # (B, 4, D)
        mean = torch.bmm(scale.unsqueeze(1) / n_tokens, x).squeeze(1)  # (B, D)
        square = torch.bmm(scale.square().unsqueeze(1) / n_tokens, x.square()).squeeze(1)
    spread = (square - mean.square()).clamp(min=0).sqrt()  # (B, D)
    return torch.cat([(means * gain).flatten(1), spread * gain.abs()], dim=1)


def _scale_and_gain(network: GPT, layer: int, h: Tensor) -> tuple[Tensor, Tensor]:
    """What the norm multiplies each position and each channel by: (B, T) and (D,) float32."""
    norm = network.ln_f if layer == len(network.h) else network.h[layer].ln_1
    square = torch.linalg.vector_norm(h, dim=-1, dtype=torch.float32).square()  # (B, T)
    scale = torch.rsqrt(square / h.shape[2] + NORM_EPS)
    return scale, norm.weight  # type: ignore[union-attr, return-value]


def token_batch(
    network: GPT, tokens: TokenSource, rows: slice, mask_prob: float, mask_seed: int
) -> tuple[Tensor, Tensor | None]:
    """(B, T) int64 tokens and, for BERT, (B, T) bool masks, on the network's device."""
    device = network.wpe.weight.device
    held = np.asarray(tokens[rows])
    batch = torch.from_numpy(held.astype(np.int64)).to(device)
    if network.objective != "bert":
        return batch, None
    drawn = own_masks(held, seed=mask_seed, mask_prob=mask_prob)
    return batch, torch.from_numpy(drawn).to(device)


def _checked_layers(network: GPT, layers: Sequence[int] | None) -> tuple[int, ...]:
    last = network.config.n_layer
    chosen = tuple(range(last + 1)) if layers is None else tuple(layers)
    if not chosen or list(chosen) != sorted(set(chosen)) or chosen[0] < 0 or chosen[-1] > last:
        raise UserError(
            f"layers {list(chosen)} cannot be taken from a network of {last} blocks: "
            f"give increasing numbers from 0 to {last}"
        )
    return chosen


def check_tokens(network: GPT, tokens: TokenSource) -> None:
    if len(tokens) == 0:
        raise UserError("there are no images to look at: check the data and the split")
    seq_len = np.asarray(tokens[0:1]).shape[1]
    if seq_len != network.seq_len:
        raise UserError(
            f"an image here has {seq_len} tokens, the network reads {network.seq_len}: "
            "resize the images to the model's size and use its own tokens"
        )


def tokens_digest(tokens: TokenSource, *, batch_size: int = 4096) -> str:
    """The sha256 of (N, T) tokens, the same for every integer type that holds them, as hex."""
    digest = hashlib.sha256()
    for start in range(0, len(tokens), batch_size):
        rows = np.asarray(tokens[start : start + batch_size])
        digest.update(rows.astype(np.uint16).tobytes())  # at most 65,536 colours
    return digest.hexdigest()


def _seal(path: Path) -> Path:
    """Where the sha256 of kept features stands."""
    return path.with_suffix(".sha256")


def _is_intact(path: Path) -> bool:
    """Whether features are kept at `path`, and are as they were written."""
    try:
        changed = damaged(path.parent, {path.name: _seal(path).read_text()})
    except (OSError, ValueError):
        return False
    if changed:
        say(f"{path} in the cache does not match its checksum: it is computed again")
    return not changed


def _filled(path: Path, shape: tuple[int, ...], fill: Callable[[np.ndarray], None]) -> None:
    """Write the array at `path`, whole or not at all."""
    with files.writing(path) as part:
        array = np.lib.format.open_memmap(part, "w+", np.float32, shape)
        system.allocate(part)
        fill(array)
        array.flush()
    files.write_bytes(_seal(path), files.sha256_of(path).encode())
