"""Complete pictures of which a part is given (paper, Figure 1), with either objective."""

from collections.abc import Iterator

import numpy as np
import torch

from igpt.compute import Precision, autocast, for_float64
from igpt.config import SampleConfig, real
from igpt.errors import UserError
from igpt.generate.sample import (
    DEFAULT,
    Progress,
    default_batch_size,
    draw,
    draw_in_order,
    last,
    uniforms,
)
from igpt.model.gpt import GPT

ROUNDS = 32


def rows_kept(image_size: int, fraction: float) -> np.ndarray:
    """The mask that keeps the leading rows of a picture, as the paper's figure does.

    Args:
        image_size: side S in pixels.
        fraction: share of the rows, rounded to whole rows.

    Returns:
        (S, S) bool.

    Raises:
        UserError: no row, or every row, would be kept.
    """
    rows = round(real(fraction, "keep_rows") * image_size)
    if not 0 < rows < image_size:
        raise UserError(
            f"keep_rows {fraction} keeps {rows} of {image_size} rows: choose a share between "
            f"{1 / image_size:.3g} and {1 - 1 / image_size:.3g}"
        )
    keep = np.zeros((image_size, image_size), bool)
    keep[:rows] = True
    return keep


def any_in_cell(marks: np.ndarray, image_size: int) -> np.ndarray:
    """The cells of a grid that hold a mark, however small.

    Args:
        marks: (H, H) bool.
        image_size: cells on a side, S; where H is no multiple of it, cells share a line.

    Returns:
        (S, S) bool.
    """
    side = len(marks)
    starts = np.arange(image_size) * side // image_size
    ends = -(-np.arange(1, image_size + 1) * side // image_size)
    for axis in (0, 1):
        cells = [marks.take(range(a, b), axis).any(axis) for a, b in zip(starts, ends, strict=True)]
        marks = np.stack(cells, axis)
    return marks


def complete(
    model: GPT,
    tokens: np.ndarray,
    keep: np.ndarray,
    *,
    n: int = 1,
    seed: int = 0,
    config: SampleConfig = DEFAULT,
    batch_size: int | None = None,
    precision: Precision = "auto",
) -> np.ndarray:
    """Fill what is not kept: in raster order (ar), or in rounds, most certain first (bert).

    Completion j of image i is the same for any `n` and `batch_size`, as `sample` has it. An
    autoregressive network sees, at each pixel, only what stands before it.

    Args:
        model: network of either objective.
        tokens: (N, T) int64 in [0, K): the pictures; read only where kept.
        keep: (T,) bool: True where a token is given, False where it is predicted.
        n: completions of each picture.
        seed: other seeds give other completions.
        config: temperature, top-k and top-p.
        batch_size: images side by side; none: as many as memory and speed allow.
        precision: of the matrix products; auto: as `sample` (ar), fp32 (bert).

    Returns:
        (N, n, T) int64 in [0, K).

    Raises:
        UserError: n below 1, or a mask that keeps everything or nothing.
    """
    steps = completing(
        model,
        tokens,
        keep,
        n=n,
        seed=seed,
        config=config,
        batch_size=batch_size,
        precision=precision,
    )
    return last(steps).tokens.reshape(len(tokens), n, -1)


def completing(
    model: GPT,
    tokens: np.ndarray,
    keep: np.ndarray,
    *,
    n: int = 1,
    seed: int = 0,
    config: SampleConfig = DEFAULT,
    batch_size: int | None = None,
    precision: Precision = "auto",
) -> Iterator[Progress]:
    """`complete`, one step at a time; (N * n, T), completions of one picture side by side."""
    if n < 1:
        raise UserError(f"n is {n}: ask for at least 1 completion of each picture")
    _check_mask(keep)
    slots = [(j, i) for i in range(len(tokens)) for j in range(n)]
    known = np.repeat(tokens, n, axis=0)  # (N * n, T)
    uniform = uniforms(seed, "complete", slots=slots, seq_len=model.seq_len)
    fill = draw_in_order if model.objective == "ar" else _draw_in_rounds
    yield from fill(
        model,
        known,
        keep=keep,
        uniform=uniform,
        config=config,
        batch_size=batch_size,
        precision=precision,
    )


def _check_mask(keep: np.ndarray) -> None:
    if keep.all():
        raise UserError("the mask keeps every pixel: mark some as predicted")
    if not keep.any():
        raise UserError("the mask keeps no pixel: keep some, or draw whole images with sample")


def _draw_in_rounds(
    model: GPT,
    known: np.ndarray,
    *,
    keep: np.ndarray,
    uniform: np.ndarray,
    config: SampleConfig,
    batch_size: int | None = None,
    precision: Precision = "auto",
) -> Iterator[Progress]:
    """Fill with a BERT network what is not kept; arguments as for `draw_in_order`."""
    model = model.in_float32()
    tokens = np.where(keep, known, 0)
    drawn = np.broadcast_to(keep, tokens.shape).copy()
    progress = Progress(tokens=tokens, drawn=drawn)
    device = model.wte.weight.device
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    numbers = 4 * model.n_colors + 16 * model.config.n_embd  # a token's, at the widest point
    size = batch_size or default_batch_size(4 * model.seq_len * numbers, device)
    for start in range(0, len(tokens), size):
        rows = slice(start, start + size)
        steps = _fill_batch_in_rounds(model, tokens[rows], drawn[rows], uniform[rows], config)
        with autocast(device, dtype):
            for _ in steps:
                yield progress


@torch.inference_mode()
def _fill_batch_in_rounds(
    model: GPT,
    tokens: np.ndarray,
    drawn: np.ndarray,
    uniform: np.ndarray,
    config: SampleConfig,
) -> Iterator[None]:
    """Fill (B, T) `tokens` where not `drawn`, in place, about equally many a round.

    The order goes by the certainty of the position, not of the colour that was drawn there, so that
    the colours still follow the network's distribution.
    """
    device = model.wte.weight.device
    number = torch.from_numpy(uniform).to(for_float64(device))  # (B, T)
    context = torch.from_numpy(tokens).to(device)  # (B, T)
    masked = torch.from_numpy(~drawn).to(device)  # (B, T)
    left = int(masked[0].sum())
    for rounds_left in range(min(ROUNDS, left), 0, -1):
        logits = model(context, masked)  # (B, T, K)
        certainty = torch.softmax(logits.float(), -1).amax(-1)  # (B, T)
        certainty = certainty.where(masked, -1.0)
        count = -(-left // rounds_left)
        order = certainty.sort(dim=-1, descending=True, stable=True).indices
        chosen = order[:, :count]  # (B, count)
        picked = logits.gather(1, chosen.unsqueeze(-1).expand(-1, -1, logits.shape[-1]))
        deciding = number.gather(1, chosen.to(number.device))
        context.scatter_(1, chosen, draw(picked, deciding, config).to(chosen.device))
        masked.scatter_(1, chosen, False)
        left -= count
        tokens[:] = context.cpu().numpy()
        drawn[:] = ~masked.cpu().numpy()
        yield
