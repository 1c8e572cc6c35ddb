"""The canonical order of a data set of shards. PURE.

An epoch lines the shards up in an order of their own, each with its samples as they lie in it. Every `window` samples
of this line are one window, and are shuffled among themselves. So the order is a function of (data set, window,
seed, epoch) alone, and yet whoever follows it needs but the shards of one window at a time, and one permutation no
longer than a window. A data set that is no larger than its window is shuffled as a whole.

Independent workers (`part`) each have a run of consecutive samples of their own, and with it most shards to
themselves, and follow an order of the same kind through it.
"""

from typing import NamedTuple

import numpy as np

from holdfast.worker import sharding
from holdfast.worker.sharding import Indices

WINDOW = 1 << 18
"""Samples that are shuffled together, unless the program says how many: a permutation of 2 MiB."""

_SHARDS = 0
"""The stream of numbers that shuffles the shards; the others are one for each window, counted from 1."""


class Pieces(NamedTuple):
    """What is gone through in an epoch, none of it empty: of a shard, so many samples from `first` on."""

    shard: Indices
    first: Indices
    samples: Indices


def whole(counts: Indices) -> Pieces:
    """All of a data set. `counts` says how many samples each shard has."""
    (shard,) = np.nonzero(counts)
    return Pieces(shard.astype(np.int64), np.zeros(len(shard), np.int64), counts[shard])


def part(counts: Indices, world_size: int, rank: int) -> Pieces:
    """The run of samples that is one worker's own. Those of all workers are the data set, and differ by one at most."""
    share, rest = divmod(int(counts.sum()), world_size)
    start = rank * share + min(rank, rest)
    stop = start + share + (rank < rest)
    ends = np.cumsum(counts)
    begins = ends - counts
    low, high = np.maximum(begins, start), np.minimum(ends, stop)
    (shard,) = np.nonzero(high > low)
    return Pieces(shard.astype(np.int64), (low - begins)[shard], (high - low)[shard])


class Epoch:
    """The order of one epoch."""

    def __init__(self, pieces: Pieces, window: int, seed: int, epoch: int) -> None:
        line = sharding.order(len(pieces.shard), sharding.stream(seed, _SHARDS), epoch)
        self._shard, self._first, samples = (column[line] for column in pieces)
        self._ends = np.cumsum(samples)
        self._begins = self._ends - samples
        self._samples = int(self._ends[-1])
        self._window = window
        self._seed, self._epoch = seed, epoch
        self._shuffled: tuple[int, Indices] | None = None

    def take(self, start: int, stop: int) -> tuple[Indices, Indices]:
        """The samples at these places of the order: the shard of each, and its row in the shard.

        Cheap when asked for in order: one window's permutation is kept.
        """
        stop = min(stop, self._samples)
        parts = [
            self._permutation(window)[
                max(start - window * self._window, 0) : max(stop - window * self._window, 0)
            ]
            + window * self._window
            for window in range(start // self._window, -(-stop // self._window))
        ]
        place = np.concatenate(parts) if parts else np.empty(0, np.int64)
        piece = np.searchsorted(self._ends, place, side="right")
        return self._shard[piece], place - self._begins[piece] + self._first[piece]

    def window_of(self, start: int) -> int:
        """The window that a place of the order is in."""
        return start // self._window

    def shards_of(self, window: int) -> Indices:
        """The shards that a window has samples of, in the order of the epoch; none beyond the last window."""
        low, high = window * self._window, min((window + 1) * self._window, self._samples)
        if low >= high:
            return np.empty(0, np.int64)
        first = np.searchsorted(self._ends, low, side="right")
        last = np.searchsorted(self._ends, high - 1, side="right")
        return self._shard[first : last + 1]

    def _permutation(self, window: int) -> Indices:
        if self._shuffled is None or self._shuffled[0] != window:
            size = min(self._window, self._samples - window * self._window)
            seed = sharding.stream(self._seed, window + 1)
            self._shuffled = window, sharding.order(size, seed, self._epoch)
        return self._shuffled[1]
