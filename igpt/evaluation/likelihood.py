"""How well a model predicts images: nats per token, per image and per pixel, beside simple models.

Autoregressive: the mean of -log p over all T tokens, the first (predicted from `sos` alone) among
them. BERT: the mean over the masked tokens of each image, then over images, as in training. Losses
under different palettes are not comparable, so the baselines see the same tokens. A surprise is the
same for every single token of an image.
"""

import math
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from igpt import compute, streams
from igpt.config import TrainConfig
from igpt.errors import NOT_FINITE, UserError
from igpt.model.gpt import GPT
from igpt.probing.features import TokenSource, check_tokens, cut, token_batch
from igpt.train.distributed import ALONE, World, in_order
from igpt.train.objectives import token_nats

# The logits (B, T, K) are the largest thing in memory: this many numbers of them at a time.
BATCH_LOGITS = {"cpu": 2**22, "cuda": 2**27}
# The table of pairs of this many colours takes 128 MB.
MAX_BIGRAM_COLORS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Likelihood:
    """Mean loss on one split and, autoregressive only, what it comes to in bits."""

    nats_per_token: float
    nats_per_token_se: float
    """Standard error over images."""
    bits_per_pixel: float | None
    """None for BERT, whose loss is no likelihood."""
    bits_per_dim: float | None
    """Bits per colour value; only for raw tokens, where it means what others mean by it."""
    unigram_nats_per_token: float | None
    """None where there are no training images to count."""
    bigram_nats_per_token: float | None
    """None, too, above `MAX_BIGRAM_COLORS`."""
    gzip_nats_per_token: float
    n_images: int


def token_surprise(
    network: GPT,
    tokens: TokenSource,
    *,
    mask_prob: float = TrainConfig().mask_prob,
    mask_seed: int = 0,
    precision: compute.Precision = "auto",
    progress: Callable[[int], None] | None = None,
    world: World = ALONE,
) -> np.ndarray:
    """-log p of every token, in nats.

    Args:
        network: on the device to use.
        tokens: (N, T) integers.
        mask_prob: BERT only, the share of positions masked, as in training.
        mask_seed: BERT only, seed of the masks.
        precision: of the matrix products; the loss itself is float32.
        progress: called with the number of images done after each batch.
        world: processes that take turns at the batches; the first one gets the result.

    Returns:
        (N, T) float32, not filled on every process but the first; BERT: nan where a token was
        not masked and so was not predicted.

    Raises:
        UserError: no images, or tokens of another length.
    """
    check_tokens(network, tokens)
    device = network.wpe.weight.device
    dtype = compute.choose_dtype(precision, device)
    batch_size = max(
        1, compute.batch_of(BATCH_LOGITS, device) // (network.seq_len * network.n_colors)
    )
    stretches = cut(len(tokens), batch_size)
    nats = np.empty((len(tokens), network.seq_len), np.float32)

    def judged(number: int) -> Tensor:
        batch, masked = token_batch(network, tokens, stretches[number], mask_prob, mask_seed)
        with compute.autocast(device, dtype):
            logits = network(batch, masked)
        found = finite_nats(logits, batch)  # (B, T)
        return (found if masked is None else torch.where(masked, found, math.nan)).cpu()

    def shape(number: int) -> tuple[int, int]:
        return stretches[number].stop - stretches[number].start, network.seq_len

    with torch.inference_mode():
        results = in_order(len(stretches), world, judged, shape)
        for rows, found in zip(stretches, results, strict=False):
            nats[rows] = found.numpy()
            if progress is not None:
                progress(rows.stop - rows.start)
    return nats


def image_nats(nats: np.ndarray) -> np.ndarray:
    """Nats per token of each image: (N, T), nan where not predicted -> (N,) float64.

    An image of which nothing was predicted (a short one, no position masked) is nan.
    """
    predicted = ~np.isnan(nats)
    count = predicted.sum(axis=1)
    total = np.where(predicted, nats, 0).sum(axis=1, dtype=np.float64)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def bits_per_dim(nats_per_token: float, *, tokens_per_pixel: int, channels: int = 3) -> float:
    """Bits per colour value of an image from nats per token.

    With a palette, one token stands for the three colour values of a pixel; as the palette discards
    some of them, the figure may then not be set beside bits per dimension of 8-bit images.
    """
    return bits_per_pixel(nats_per_token, tokens_per_pixel=tokens_per_pixel) / channels


def bits_per_pixel(nats_per_token: float, *, tokens_per_pixel: int) -> float:
    """Bits a pixel from nats per token; a pixel is 1 palette token or 3 raw ones."""
    return nats_per_token * tokens_per_pixel / math.log(2)


def likelihood(
    network: GPT,
    tokens: TokenSource,
    train_tokens: TokenSource,
    *,
    tokens_per_pixel: int,
    mask_prob: float = TrainConfig().mask_prob,
    precision: compute.Precision = "auto",
    progress: Callable[[int], None] | None = None,
    world: World = ALONE,
) -> Likelihood | None:
    """The loss of a split beside a unigram, a bigram and gzip on the same tokens.

    Args:
        network: on the device to use.
        tokens: (N, T) integers of the split to judge.
        train_tokens: (M, T) integers that the simple models count.
        tokens_per_pixel: 1 for a palette, 3 for raw tokens.
        mask_prob: BERT only, as in training.
        precision: of the matrix products.
        progress: called with the number of images done after each batch.
        world: processes that share the network's part; only the first one gets a result.
    """
    nats = token_surprise(
        network, tokens, mask_prob=mask_prob, precision=precision, progress=progress, world=world
    )
    if not world.is_first:
        return None
    per_image = image_nats(nats)
    per_image = per_image[~np.isnan(per_image)]
    mean = float(per_image.mean())
    counts = None
    if len(train_tokens):
        counts = Counts.of(train_tokens, n_colors=network.n_colors, stride=tokens_per_pixel)
    raw, ar = tokens_per_pixel == 3, network.objective == "ar"
    return Likelihood(
        nats_per_token=mean,
        nats_per_token_se=float(per_image.std() / math.sqrt(len(per_image))),
        bits_per_pixel=bits_per_pixel(mean, tokens_per_pixel=tokens_per_pixel) if ar else None,
        bits_per_dim=bits_per_dim(mean, tokens_per_pixel=3) if ar and raw else None,
        unigram_nats_per_token=counts.unigram_nats(tokens) if counts else None,
        bigram_nats_per_token=counts.bigram_nats(tokens) if counts else None,
        gzip_nats_per_token=gzip_nats_per_token(tokens),
        n_images=len(per_image),
    )


class Counts:
    """Colours and pairs of neighbouring colours counted on the training split, each plus one.

    The neighbour is the pixel before in raster order; with raw tokens, the same channel of it. A
    token without a neighbour is predicted by the unigram.

    Args:
        single: (K,) int64 counts.
        pairs: (K, K) int64 counts, row: the neighbour; none: too many colours to count pairs.
        stride: tokens back to the neighbour.
    """

    def __init__(self, single: np.ndarray, pairs: np.ndarray | None, stride: int) -> None:
        self._stride = stride
        self._single_nats = -np.log((single + 1) / (single + 1).sum())
        self._pair_nats = None
        if pairs is not None:
            self._pair_nats = -np.log((pairs + 1) / (pairs + 1).sum(axis=1, keepdims=True))

    @classmethod
    def of(cls, tokens: TokenSource, *, n_colors: int, stride: int) -> "Counts":
        """Count (M, T) tokens, some images at a time."""
        single = np.zeros(n_colors, np.int64)
        pairs = np.zeros(n_colors**2, np.int64) if n_colors <= MAX_BIGRAM_COLORS else None
        for rows in _stretches(tokens):
            single += np.bincount(rows.reshape(-1), minlength=n_colors)
            if pairs is not None:
                flat = rows[:, :-stride] * n_colors + rows[:, stride:]
                pairs += np.bincount(flat.reshape(-1), minlength=n_colors**2)
        square = None if pairs is None else pairs.reshape(n_colors, n_colors)
        return cls(single, square, stride)

    def unigram_nats(self, tokens: TokenSource) -> float:
        """Mean -log p of (N, T) tokens by the colour counts."""
        return self._mean(tokens, lambda rows: float(self._single_nats[rows].sum()))

    def bigram_nats(self, tokens: TokenSource) -> float | None:
        """Mean -log p of (N, T) tokens, each given its neighbour; none where no pairs are known."""
        pair_nats = self._pair_nats
        if pair_nats is None:
            return None

        def total(rows: np.ndarray) -> float:
            stride = self._stride
            first = self._single_nats[rows[:, :stride]].sum()
            rest = pair_nats[rows[:, :-stride], rows[:, stride:]].sum()
            return float(first + rest)

        return self._mean(tokens, total)

    @staticmethod
    def _mean(tokens: TokenSource, total: Callable[[np.ndarray], float]) -> float:
        sums, count = 0.0, 0
        for rows in _stretches(tokens):
            sums += total(rows)
            count += rows.size
        return sums / count


def gzip_nats_per_token(tokens: TokenSource) -> float:
    """What deflate makes of all tokens one after another, two bytes each, as nats per token."""
    packer = zlib.compressobj(9)
    n_bytes, n_tokens = 0, 0
    for rows in _stretches(tokens):
        n_bytes += len(packer.compress(rows.astype("<u2").tobytes()))
        n_tokens += rows.size
    n_bytes += len(packer.flush())
    return 8 * n_bytes * math.log(2) / n_tokens


def _stretches(tokens: TokenSource) -> Iterator[np.ndarray]:
    size = 4096
    for start in range(0, len(tokens), size):
        yield np.asarray(tokens[start : start + size]).astype(np.int64)


def whole_surprise(
    network: GPT,
    tokens: TokenSource,
    *,
    mask_prob: float = TrainConfig().mask_prob,
    precision: compute.Precision = "auto",
    progress: Callable[[int], None] | None = None,
) -> np.ndarray:
    """-log p of every token, in nats, of one image whatever else it is judged with.

    BERT: each token is predicted once, in passes that hide about `mask_prob` of the tokens, the
    same ones of every image. So every image gets a mean that can be compared, though no likelihood.

    Args:
        network: on the device to use.
        tokens: (N, T) integers.
        mask_prob: BERT only, the share of positions masked in training.
        precision: of the matrix products; the loss itself is float32.
        progress: called with the number of images done after each batch.

    Returns:
        (N, T) float32.

    Raises:
        UserError: no images, or tokens of another length.
    """
    if network.objective == "ar":
        return token_surprise(network, tokens, precision=precision, progress=progress)
    check_tokens(network, tokens)
    device = network.wpe.weight.device
    dtype = compute.choose_dtype(precision, device)
    batch_size = max(
        1, compute.batch_of(BATCH_LOGITS, device) // (network.seq_len * network.n_colors)
    )
    passes = [torch.from_numpy(hidden).to(device) for hidden in _passes(network.seq_len, mask_prob)]
    nats = np.empty((len(tokens), network.seq_len), np.float32)
    with torch.inference_mode(), compute.autocast(device, dtype):
        for start in range(0, len(tokens), batch_size):
            rows = np.asarray(tokens[start : start + batch_size]).astype(np.int64)
            batch = torch.from_numpy(rows).to(device)  # (B, T)
            found = torch.zeros(batch.shape, dtype=torch.float32, device=device)  # (B, T)
            for hidden in passes:
                masked = hidden.expand(batch.shape)
                found = torch.where(masked, finite_nats(network(batch, masked), batch), found)
            nats[start : start + len(batch)] = found.cpu().numpy()
            if progress is not None:
                progress(len(batch))
    return nats


def finite_nats(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """`token_nats`, of a network whose logits are numbers.

    Raises:
        UserError: they are not.
    """
    nats = token_nats(logits, tokens)
    if not nats.isfinite().all():
        raise UserError(NOT_FINITE)
    return nats


def _passes(seq_len: int, mask_prob: float) -> list[np.ndarray]:
    """Masks that hide every position once, each about `mask_prob` of them: (T,) bool each."""
    n = min(seq_len, max(2, round(1 / mask_prob)))
    turn = streams.stream(0, "surprise").permutation(seq_len) % n
    return [turn == i for i in range(n)]
