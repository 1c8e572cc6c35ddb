"""Virtual time, the one source of randomness, and the trace."""

import heapq
import random
from collections.abc import Callable
from typing import Any

T0 = 1_000_000
"""When the world begins, in milliseconds."""


class Violation(AssertionError):  # noqa: N818
    """A promise was broken."""


class World:
    """A queue of what is to happen. Nothing in a simulation takes time or randomness from anywhere else."""

    def __init__(self, seed: int, *, trace: bool = False) -> None:
        self.rng = random.Random(seed)
        self.now = T0
        self.happened = 0
        self.trace: list[str] | None = [] if trace else None
        self._queue: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._seq = 0

    def at(self, delay_ms: int, call: Callable[..., None], *args: Any) -> None:
        """Call it in so many milliseconds; in the order of asking when several are due at once."""
        self._seq += 1
        heapq.heappush(self._queue, (self.now + delay_ms, self._seq, call, args))

    def run(self, until: int, done: Callable[[], bool] = lambda: False) -> None:
        """Let everything happen that is due before `until`, or until it is done."""
        while self._queue and self._queue[0][0] <= until and not done():
            self.now, _, call, args = heapq.heappop(self._queue)
            self.happened += 1
            call(*args)
        if not done():
            self.now = max(self.now, until)

    def between(self, least: int, most: int) -> int:
        return least + int(self.rng.random() * (most - least + 1))

    def chance(self, p: float) -> bool:
        return self.rng.random() < p

    def note(self, who: str, what: object) -> None:
        """Add a line to the trace. `what` is formatted only when there is one."""
        if self.trace is not None:
            self.trace.append(f"{self.now - T0:>7} {who:<12} {what}")
