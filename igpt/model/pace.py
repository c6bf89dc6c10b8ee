"""How many threads are fastest just now: all that are there, unless others keep the cores busy.

Threads that share each step wait for each other, so on a machine that is busy, or for a network
that is small, fewer can be faster. What is decoded does not depend on it.
"""

from collections import deque
from statistics import median

LOOK_STEPS = 3
FIRST_WAIT, LONGEST_WAIT = 16, 512
SLOWER = 1.5  # than at the last look: time for another


class Pace:
    """Chooses among all threads, half of them, a quarter, ... and one, by how long steps take.

    Now and then a few steps try the next larger or smaller choice; the less often, the longer this
    has changed nothing.

    Args:
        n_threads: the most that may be used.
    """

    def __init__(self, n_threads: int) -> None:
        self.choices = [n_threads]
        while self.choices[-1] > 1:
            self.choices.append(self.choices[-1] // 2)
        self.best = self.tried = 0
        self.upwards = False
        self.wait = self.left = FIRST_WAIT
        self.usual_s: deque[float] = deque(maxlen=2 * LOOK_STEPS + 1)
        self.tried_s: list[float] = []
        self.looked_s = 0.0

    def next(self) -> int:
        """Threads for the next step."""
        return self.choices[self.tried]

    def took(self, span_s: float) -> None:
        """How long that step was."""
        if self.tried != self.best:
            self.tried_s.append(span_s)
            if len(self.tried_s) == LOOK_STEPS:
                self._judge()
            return
        self.usual_s.append(span_s)
        self.left -= 1
        full = len(self.usual_s) == self.usual_s.maxlen
        slowed = full and 0 < SLOWER * self.looked_s < median(self.usual_s)
        if len(self.choices) > 1 and full and (self.left <= 0 or slowed):
            self._look()

    def _look(self) -> None:
        self.upwards = not self.upwards
        beside = self.best + (-1 if self.upwards else 1)
        if not 0 <= beside < len(self.choices):
            beside = self.best + (1 if self.upwards else -1)
        self.tried, self.tried_s = beside, []
        self.looked_s = median(self.usual_s)

    def _judge(self) -> None:
        better = median(self.tried_s) < self.looked_s
        self.wait = FIRST_WAIT if better else min(2 * self.wait, LONGEST_WAIT)
        self.left = self.wait
        if better:
            self.best = self.tried
            self.looked_s = median(self.tried_s)
        self.tried = self.best
        self.usual_s.clear()
