"""Several sources in exact proportions: whose turn each place of the stream is."""

import math
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from igpt.errors import UserError

_MAX_PERIOD = 1_000_000


class Mixture:
    """Places dealt out to sources by weight, in a pattern that repeats every W places."""

    def __init__(self, weights: list[float]) -> None:
        """Spread W places evenly, source k having exactly its share of them.

        Args:
            weights: of the sources, above 0; only their proportions count.

        Raises:
            UserError: a weight is not above 0, or W would be above a million.
        """
        if not all(0 < weight < math.inf for weight in weights):
            raise UserError(f"the sources' weights are {weights}: each must be above 0")
        shares = [Fraction(str(weight)) for weight in weights]  # 0.1 is a tenth, as it was written
        common = math.lcm(*(share.denominator for share in shares))
        whole = [int(share * common) for share in shares]
        self._counts = np.array([count // math.gcd(*whole) for count in whole])  # (sources,)
        if self._counts.sum() > _MAX_PERIOD:
            raise UserError(f"the sources' weights {weights} have no simple ratio: round them")
        which = np.repeat(np.arange(len(weights)), self._counts)
        rank = np.concatenate([np.arange(count) for count in self._counts])
        order = np.argsort((2 * rank + 1) / self._counts[which], kind="stable")
        self._which, self._rank = which[order], rank[order]  # (W,) source; its place in the period

    def dealt(self, places: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Which source each place of the stream falls to, and that source's how-manieth it is.

        Args:
            places: (B,) int64, counted from the run's start.

        Returns:
            two (B,) int64 arrays.
        """
        period, offset = np.divmod(places, len(self._which))
        which = self._which[offset]
        return which, period * self._counts[which] + self._rank[offset]
