"""Draw images token by token from an autoregressive network, with the key/value cache."""

import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from igpt.config import SampleConfig
from igpt.errors import UserError
from igpt.generate.draw import draw, uniforms
from igpt.model.cache import KVCache
from igpt.model.gpt import GPT

DEFAULT = SampleConfig()
# Side by side, more images share each read of the weights; beyond this the gain is gone.
LARGEST_BATCH = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Images being drawn; the arrays go on changing, so copy what you keep."""

    tokens: np.ndarray
    """(n, T) int64; 0 where nothing stands yet."""
    drawn: np.ndarray
    """(n, T) bool: which tokens are given or drawn."""

    @property
    def fraction(self) -> float:
        """Share of the tokens that stand, 0 to 1."""
        return float(self.drawn.mean())


def sample(
    model: GPT,
    n: int,
    *,
    seed: int = 0,
    first: int = 0,
    config: SampleConfig = DEFAULT,
    batch_size: int | None = None,
) -> np.ndarray:
    """Draw images (paper, Samples): temperature 1 and every colour unless told otherwise.

    Image i of a seed is the same for any `n`, `first` and `batch_size`, as far as the logits are:
    their last bits differ between batch sizes, which changes a token about once in 10^6 draws.

    Args:
        model: autoregressive network.
        n: images.
        seed: the images `first` to `first + n - 1` of this seed are drawn.
        first: number of the first image.
        config: temperature, top-k and top-p.
        batch_size: images drawn side by side; none: as many as memory and speed allow.

    Returns:
        (n, T) int64 in [0, K).

    Raises:
        UserError: a BERT network, n below 1, or logits that are not finite.
    """
    steps = sampling(model, n, seed=seed, first=first, config=config, batch_size=batch_size)
    return last(steps).tokens


def last(steps: Iterator[Progress]) -> Progress:
    """Draw to the end."""
    (progress,) = deque(steps, maxlen=1)
    return progress


def sampling(
    model: GPT,
    n: int,
    *,
    seed: int = 0,
    first: int = 0,
    config: SampleConfig = DEFAULT,
    batch_size: int | None = None,
) -> Iterator[Progress]:
    """`sample`, one step at a time; what is yielded last is the whole."""
    if n < 1:
        raise UserError(f"n is {n}: ask for at least 1 image")
    T = model.seq_len
    yield from draw_in_order(
        model,
        np.zeros((n, T), np.int64),
        keep=np.zeros(T, bool),
        uniform=uniforms(seed, "sample", slots=[(0, first + i) for i in range(n)], seq_len=T),
        config=config,
        batch_size=batch_size,
    )


def draw_in_order(
    model: GPT,
    known: np.ndarray,
    *,
    keep: np.ndarray,
    uniform: np.ndarray,
    config: SampleConfig,
    batch_size: int | None = None,
) -> Iterator[Progress]:
    """Fill in raster order what is not kept.

    Args:
        model: autoregressive network.
        known: (n, T) int64; read only where kept.
        keep: (T,) bool: tokens that are given.
        uniform: (n, T) float64 in [0, 1), decides each token.
        config: temperature, top-k and top-p.
        batch_size: images side by side; none: `default_batch_size`.

    Yields:
        the same `Progress` after every position of every batch.
    """
    if model.objective != "ar":
        raise UserError(
            "this network was trained with the bert objective, which predicts masked pixels and "
            "cannot sample: use `complete` with a mask, or a network trained with ar"
        )
    tokens = np.where(keep, known, 0)
    drawn = np.broadcast_to(keep, tokens.shape).copy()
    progress = Progress(tokens=tokens, drawn=drawn)
    size = batch_size or default_batch_size(model)
    for start in range(0, len(tokens), size):
        rows = slice(start, start + size)
        for _ in _fill_batch(model, tokens[rows], drawn[rows], uniform[rows], config):
            yield progress


@torch.inference_mode()
def _fill_batch(
    model: GPT,
    tokens: np.ndarray,
    drawn: np.ndarray,
    uniform: np.ndarray,
    config: SampleConfig,
) -> Iterator[None]:
    """Fill (B, T) `tokens` where not `drawn`, in place; `drawn` is the same in every row."""
    device = model.wte.weight.device
    B, T = tokens.shape
    given = int(np.argmin(drawn[0]))  # leading kept tokens; some token is not kept
    number = torch.from_numpy(uniform).to(device)  # (B, T)
    context = torch.from_numpy(tokens).to(device)  # (B, T)
    cache = KVCache(model.config, batch_size=B, seq_len=T, device=device)
    logits = model.extend(context[:, :given], cache)  # (B, K)
    if not torch.isfinite(logits).all():
        raise UserError(
            "the network's logits are not finite: its training diverged; use an earlier checkpoint"
        )
    for t in range(given, T):
        if not drawn[0, t]:
            context[:, t] = draw(logits, number[:, t], config)
            tokens[:, t] = context[:, t].cpu().numpy()
            drawn[:, t] = True
        yield
        if t + 1 < T:
            logits = model.extend(context[:, t : t + 1], cache)


def default_batch_size(model: GPT) -> int:
    """Images whose caches fit into half of the free memory, at most `LARGEST_BATCH`."""
    cache_bytes = 2 * model.config.n_layer * model.seq_len * model.config.n_embd * 4
    free = free_bytes(model.wte.weight.device)
    return max(1, min(LARGEST_BATCH, free // 2 // cache_bytes))


def free_bytes(device: torch.device) -> int:
    """Memory that can still be had on a device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
