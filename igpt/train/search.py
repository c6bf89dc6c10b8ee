"""The learning rate, found as the paper does: ever lower ones until the final loss rises (§3.4)."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

FIRST = -2
LOWEST = -6


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One run of the search."""

    lr: float
    """Peak learning rate."""
    valid_nats: float | None
    """Final validation loss, nats per token; none: the run diverged."""
    run: str
    """Its folder."""

    @property
    def loss(self) -> float:
        """The validation loss, infinite where the run diverged."""
        return math.inf if self.valid_nats is None else self.valid_nats


def rates() -> Iterator[float]:
    """0.01, 0.003, 0.001, 0.0003, ... down to 1e-6."""
    for exponent in range(FIRST, LOWEST - 1, -1):
        yield float(f"1e{exponent}")
        if exponent > LOWEST:
            yield float(f"3e{exponent - 1}")


def search(train: Callable[[float], Trial]) -> Iterator[tuple[Trial, ...]]:
    """Train with one rate after another; yields all trials so far after each.

    It ends after the first finite loss that is above the one before, or at the lowest rate.

    Args:
        train: makes one run and gives its outcome.
    """
    trials: list[Trial] = []
    for lr in rates():
        trials.append(train(lr))
        yield tuple(trials)
        if len(trials) > 1 and trials[-1].loss > trials[-2].loss:
            return


def best(trials: tuple[Trial, ...]) -> Trial | None:
    """The trial of the lowest loss; none where all diverged."""
    finite = [trial for trial in trials if trial.valid_nats is not None]
    return min(finite, key=lambda trial: trial.loss, default=None)
