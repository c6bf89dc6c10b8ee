"""Draw images token by token from an autoregressive network, with the key/value cache.

Each token is decided by a number that was drawn beforehand, whatever is drawn beside it.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from igpt import streams
from igpt.compute import Precision, for_float64, free_memory_bytes, one_thread
from igpt.config import SampleConfig
from igpt.errors import NOT_FINITE, UserError
from igpt.model.decoder import Decoder, cache_bytes, open_decoder
from igpt.model.gpt import GPT

DEFAULT = SampleConfig()
# Images side by side share each read of the weights; with more than this the gain is gone
# (at T = 256, D = 192), or turns, where the caches are larger (RESULTS.md).
LARGEST_BATCH = 32


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
    precision: Precision = "auto",
) -> np.ndarray:
    """Draw images (paper, Samples): temperature 1 and every colour unless told otherwise.

    Image i of a seed is the same for any `n`, `first` and `batch_size`, bit for bit with the
    compiled decoder. Elsewhere the last bits of logits differ between batch sizes, which in float32
    changes a token about once in 10^6 draws, in bfloat16 often.

    Args:
        model: autoregressive network.
        n: images.
        seed: the images `first` to `first + n - 1` of this seed are drawn.
        first: number of the first image.
        config: temperature, top-k and top-p.
        batch_size: images drawn side by side; none: as many as memory and speed allow.
        precision: of the matrix products; auto: bf16 where the processor has it, see
            `open_decoder`. fp32 gives the same images on any machine, up to rounding.

    Returns:
        (n, T) int64 in [0, K).

    Raises:
        UserError: a BERT network, n below 1, or logits that are not finite.
    """
    steps = sampling(
        model, n, seed=seed, first=first, config=config, batch_size=batch_size, precision=precision
    )
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
    precision: Precision = "auto",
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
        precision=precision,
    )


def draw_in_order(
    model: GPT,
    known: np.ndarray,
    *,
    keep: np.ndarray,
    uniform: np.ndarray,
    config: SampleConfig,
    batch_size: int | None = None,
    precision: Precision = "auto",
) -> Iterator[Progress]:
    """Fill in raster order what is not kept.

    Args:
        model: autoregressive network.
        known: (n, T) int64; read only where kept.
        keep: (T,) bool: tokens that are given.
        uniform: (n, T) float64 in [0, 1), decides each token.
        config: temperature, top-k and top-p.
        batch_size: images side by side; none: `default_batch_size`.
        precision: as `open_decoder` takes it.

    Yields:
        the same `Progress` after every position of every batch.
    """
    if model.objective != "ar":
        raise UserError(
            "this network was trained with the bert objective, which predicts masked pixels and "
            "cannot sample: use `complete` with a mask, or a network trained with ar"
        )
    model.check_predicts()
    tokens = np.where(keep, known, 0)
    drawn = np.broadcast_to(keep, tokens.shape).copy()
    progress = Progress(tokens=tokens, drawn=drawn)
    decoder = open_decoder(model, precision=precision)
    each = cache_bytes(model, decoder.dtype)
    size = batch_size or default_batch_size(each, model.wte.weight.device)
    for start in range(0, len(tokens), size):
        rows = slice(start, start + size)
        for _ in _fill_batch(decoder, tokens[rows], drawn[rows], uniform[rows], config):
            yield progress


@torch.inference_mode()
def _fill_batch(
    decoder: Decoder,
    tokens: np.ndarray,
    drawn: np.ndarray,
    uniform: np.ndarray,
    config: SampleConfig,
) -> Iterator[None]:
    """Fill (B, T) `tokens` where not `drawn`, in place; `drawn` is the same in every row."""
    device = decoder.model.wte.weight.device
    to_draw = np.flatnonzero(~drawn[0])
    first, end = int(to_draw[0]), int(to_draw[-1]) + 1
    number = torch.from_numpy(uniform).to(for_float64(device))  # (B, T)
    context = torch.from_numpy(tokens).to(device)  # (B, T)
    logits = decoder.start(context[:, :first])  # (B, K)
    if not torch.isfinite(logits).all():
        raise UserError(NOT_FINITE)
    for t in range(first, end):
        if t > first:
            logits = decoder.step(context[:, t - 1])
        if not drawn[0, t]:
            with one_thread():
                context[:, t] = draw(logits, number[:, t], config)
            tokens[:, t] = context[:, t].cpu().numpy()
            drawn[:, t] = True
        yield


def default_batch_size(bytes_each: int, device: torch.device) -> int:
    """Images side by side that take half of the free memory, at most `LARGEST_BATCH`."""
    return max(1, min(LARGEST_BATCH, free_memory_bytes(device) // 2 // bytes_each))


def uniforms(seed: int, name: str, *, slots: list[tuple[int, int]], seq_len: int) -> np.ndarray:
    """The numbers that decide each token of each image.

    Every image has a stream of its own, so its numbers depend neither on how many are drawn with it
    nor on which of its tokens are given.

    Args:
        seed: seed of the whole request.
        name: stream name.
        slots: (step, slot) of each image in the stream.
        seq_len: tokens T of one image.

    Returns:
        (B, T) float64 in [0, 1).
    """
    rows = [streams.stream(seed, name, step, slot).random(seq_len) for step, slot in slots]
    return np.stack(rows)  # (B, T)


def kept_probabilities(logits: Tensor, config: SampleConfig) -> Tensor:
    """Probabilities after temperature, top-k and top-p; what is cut off is 0, sums are not 1.

    Colours that tie with the last one kept are kept as well, so the order of a sort never matters.

    Args:
        logits: (..., K) float.
        config: its temperature is above 0.

    Returns:
        (..., K) float64.
    """
    # The likeliest stands at 0 before a tiny temperature divides: it stays, the others become -inf.
    behind = logits.double() - logits.amax(-1, keepdim=True).double()
    probabilities = torch.softmax(behind / config.temperature, -1)  # (..., K)
    n_colors = logits.shape[-1]
    if config.top_k is not None and config.top_k < n_colors:
        least = probabilities.topk(config.top_k, -1).values[..., -1:]  # (..., 1)
        probabilities = probabilities.where(probabilities >= least, 0.0)
    if config.top_p is not None and config.top_p < 1:
        ranked = probabilities.sort(-1, descending=True).values  # (..., K)
        before = ranked.cumsum(-1) - ranked  # mass of the likelier ones
        inside = before < config.top_p * ranked.sum(-1, keepdim=True)
        least = ranked.where(inside, torch.inf).amin(-1, keepdim=True)  # (..., 1)
        probabilities = probabilities.where(probabilities >= least, 0.0)
    return probabilities


def draw(logits: Tensor, uniform: Tensor, config: SampleConfig) -> Tensor:
    """Tokens by inverse distribution function, in float64.

    A row's token depends on that row alone: rounding of the logits can change it only where
    `uniform` falls within that rounding of a boundary between two colours.

    Args:
        logits: (..., K) float.
        uniform: (...) float64 in [0, 1).
        config: temperature 0 takes the likeliest colour, the lower index on ties.

    Returns:
        (...) int64 in [0, K).
    """
    if config.temperature == 0:
        return logits.argmax(-1)
    logits = logits.to(uniform.device)  # some accelerators have no float64
    cumulated = kept_probabilities(logits, config).cumsum(-1)  # (..., K)
    total = cumulated[..., -1:].contiguous()
    token = torch.searchsorted(cumulated, uniform.unsqueeze(-1) * total, right=True)
    last = torch.searchsorted(cumulated, total)  # the product can round up to the total
    return torch.minimum(token, last).squeeze(-1)
