"""The linear probe by stochastic gradients, for sets too large for `logistic` (paper §3.4).

Momentum 0.9, no weight decay, rates 30, 10, 3, ... tried in turn until validation accuracy falls,
each with a cosine to 0. As in the paper, features are taken as they are.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from igpt.errors import UserError
from igpt.probe.protocol import (
    Labelled,
    LayerScore,
    ProbeResult,
    best_score,
    check_labels,
    judged,
    present_labels,
    score_of,
)
from igpt.tokens.batches import BatchStream

RATES = (30.0, 10.0, 3.0, 1.0, 0.3, 0.1)


def probe_layers_by_sgd(
    train: Labelled,
    valid: Labelled,
    test: Labelled,
    *,
    layers: Sequence[int],
    total_steps: int,
    batch_size: int = 128,
    rates: Sequence[float] = RATES,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Callable[[int], None] | None = None,
) -> tuple[ProbeResult, np.ndarray, np.ndarray]:
    """The protocol of `probe_layers` with another solver; its strengths are learning rates.

    Args:
        train: features read a batch at a time: a memory map will do.
        valid: to choose layer and rate by.
        test: looked at once.
        layers: the number of each row of `features`, for the record.
        total_steps: updates for each rate.
        batch_size: images an update.
        rates: tried in turn; where all explode, that is a UserError.
        seed: of the order of images.
        device: where to compute.
        progress: called with 1 after each layer.

    Returns:
        The result, and the chosen classifier's (C, D) weights and (C,) biases, fitted on train and
        validation.
    """
    for split, name in ((train, "train"), (valid, "valid"), (test, "test")):
        check_labels(split.labels, split.features.shape[1], name)
    settings = _Settings(total_steps, batch_size, seed, torch.device(device))
    present = present_labels(train.labels)
    codes = np.searchsorted(present, train.labels)
    scores = []
    for row, layer in enumerate(layers):

        def score(lr: float, row: int = row, layer: int = layer) -> LayerScore | None:
            fit = _fit([train.features[row]], codes, settings, lr)
            if not np.isfinite(fit[0]).all():
                return None
            on_valid = valid.features[row], valid.labels
            return score_of(*fit, present, *on_valid, layer=layer, strength=lr)

        scores.append(_searched(score, rates))
        if progress is not None:
            progress(1)
    best = best_score(scores)
    row = list(layers).index(best.layer)
    labels = np.concatenate([train.labels, valid.labels])
    present = present_labels(labels)
    both = [train.features[row], valid.features[row]]
    weights, biases = _fit(both, np.searchsorted(present, labels), settings, best.strength)
    return judged(scores, (train, valid, test), row, weights, biases, present), weights, biases


@dataclass(frozen=True, slots=True)
class _Settings:
    total_steps: int
    batch_size: int
    seed: int
    device: torch.device


def _searched(score: Callable[[float], LayerScore | None], rates: Sequence[float]) -> LayerScore:
    """The rate before the first that does worse on validation; one that explodes is passed over."""
    found: LayerScore | None = None
    for lr in rates:
        tried = score(lr)
        if found is not None and (tried is None or tried.valid_accuracy < found.valid_accuracy):
            break
        found = tried or found
    if found is None:
        raise UserError(f"no rate of {list(rates)} kept the probe finite: try smaller ones")
    return found


def _fit(
    parts: Sequence[np.ndarray], codes: np.ndarray, settings: _Settings, lr: float
) -> tuple[np.ndarray, np.ndarray]:
    """(C, D) weights and (C,) biases from zero, on the rows of all parts together."""
    device, total_steps = settings.device, settings.total_steps
    n_classes, width = int(codes.max()) + 1, parts[0].shape[1]
    weights = torch.zeros(n_classes, width, dtype=torch.float32, device=device, requires_grad=True)
    biases = torch.zeros(n_classes, dtype=torch.float32, device=device, requires_grad=True)
    optimizer = torch.optim.SGD([weights, biases], lr, momentum=0.9)
    size = min(settings.batch_size, len(codes))
    rows = np.arange(len(codes))[:, None]
    order = BatchStream(rows, None, None, batch_size=size, seed=settings.seed, name="sgd-probe")
    for step in range(total_steps):
        chosen = np.sort(order.at(step).ids)  # sorted: a memory map is read in its order
        batch = torch.from_numpy(_gathered(parts, chosen)).to(device)
        for group in optimizer.param_groups:
            group["lr"] = 0.5 * lr * (1 + math.cos(math.pi * step / total_steps))
        scores = F.linear(batch, weights, biases)
        loss = F.cross_entropy(scores, torch.from_numpy(codes[chosen]).to(device))
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
    return weights.detach().cpu().numpy(), biases.detach().cpu().numpy()


def _gathered(parts: Sequence[np.ndarray], chosen: np.ndarray) -> np.ndarray:
    """Rows `chosen`, increasing, of the parts end to end: (n, D) float32."""
    found, start = [], 0
    for part in parts:
        here = chosen[(chosen >= start) & (chosen < start + len(part))]
        found.append(part[here - start])
        start += len(part)
    return np.concatenate(found).astype(np.float32, copy=False)
