"""A data set of shards that knows how far it is."""

import os
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from holdfast.data.columns import Indices, Part, assemble, cut
from holdfast.data.memory import Memory
from holdfast.data.prefetch import Prefetch
from holdfast.data.reader import Fetcher, ShardReader
from holdfast.worker import windows
from holdfast.worker.dataset import Dataset
from holdfast.worker.errors import CheckpointMismatch
from holdfast.worker.report import say
from holdfast.worker.sharding import Cursor, Plan

THREADS = 2
CHUNK_BYTES = 8 << 20
"""Batches are made several at a time, of about so many bytes: what threads cost each other is paid once."""
CHUNK_BATCHES = 32
AHEAD_BYTES = 64 << 20
"""So much is made before it is asked for; never less than a chunk a thread and one."""
AHEAD_CHUNKS = 16
IN_HAND = 4
"""The loop may hold batches of so many chunks, and their memory is still used again."""


class _Chunk(NamedTuple):
    """Consecutive batches of one epoch, made together."""

    batches: Any
    ends: list[int]


class ShardDataset(Dataset):
    """The batches of one rank, made ahead in threads. Made by `Run.dataset`.

    The cursor moves when a batch is handed out, and not when it is made. An iterator that is dropped ends its
    threads; what they meet is raised in the loop.
    """

    def __init__(
        self,
        plan: Plan,
        reader: ShardReader,
        epochs: int | None,
        name: str,
        window: int,
        keep: Callable[[], None],
    ) -> None:
        """`keep` is called before a cursor is saved: from then on the data set has to stay what it is."""
        super().__init__(plan, reader, epochs)
        self._reader = reader
        self._name = name
        self._window = window
        self._keep = keep
        self._fingerprint = reader.index.fingerprint
        counts = np.array([shard.samples for shard in reader.index.shards], np.int64)
        self._pieces = (
            windows.part(counts, plan.world_size, plan.rank) if plan.partition else windows.whole(counts)
        )

    def __iter__(self) -> Iterator[Any]:
        maker = None
        try:
            while not self.done:
                at = self.cursor
                if maker is None or maker.at != at or maker.pid != os.getpid():
                    if maker is not None:
                        maker.stop()
                    maker = _Maker(self._reader, self.plan, self._pieces, self._window, at, self._epochs)
                batch = maker.take()
                self.cursor = maker.at = at.after(self.plan)
                yield batch
        finally:
            if maker is not None:
                maker.stop()

    def save(self) -> dict[str, Any]:
        """The cursor, for the checkpoint."""
        self._keep()
        return {**super().save(), **self._same(), "name": self._name}

    def restore(self, saved: dict[str, Any]) -> None:
        """Go on from what `save` returned. Raises CheckpointMismatch when it is of another data set."""
        for field, value in self._same().items():
            if saved.get(field) != value:
                raise CheckpointMismatch(
                    f"the checkpoint is of the data set {saved.get('name')} with {field} {saved.get(field)}, this run "
                    f"has {self._name} with {field} {value}; to start anew, give it a checkpoint directory of its own"
                )
        super().restore({key: saved[key] for key in saved if key not in (*self._same(), "name")})

    def _same(self) -> dict[str, Any]:
        return {"fingerprint": self._fingerprint, "window": self._window}


class _Maker:
    """Makes the batches from one cursor on, in threads."""

    def __init__(
        self,
        reader: ShardReader,
        plan: Plan,
        pieces: windows.Pieces,
        window: int,
        at: Cursor,
        epochs: int | None,
    ) -> None:
        reader.check_process()
        self.at = at
        self.pid = os.getpid()
        self._reader, self._plan, self._pieces, self._window = reader, plan, pieces, window
        self._stop = threading.Event()
        self._fetcher = Fetcher(reader, self._stop) if reader.remote else None
        share = plan.batch_size if plan.partition else plan.batch_size // plan.world_size
        batch_bytes = max(1, share * reader.index.size_bytes // max(1, reader.index.samples))
        self._together = max(1, min(CHUNK_BATCHES, CHUNK_BYTES // batch_bytes))
        ahead = max(THREADS + 1, min(AHEAD_CHUNKS, AHEAD_BYTES // (batch_bytes * self._together)))
        self._memory = Memory(ahead + IN_HAND)
        self._prefetch = Prefetch(self._calls(at, epochs), THREADS, ahead)
        self._chunk: _Chunk | None = None
        self._batch = 0

    def take(self) -> Any:
        """The next batch."""
        if self._chunk is None or self._batch == len(self._chunk.ends):
            self._chunk, self._batch = self._prefetch.take(), 0
            assert self._chunk is not None, "it asks for more epochs than there are"
        ends = self._chunk.ends
        start = ends[self._batch - 1] if self._batch else 0
        self._batch += 1
        return cut(self._chunk.batches, start, ends[self._batch - 1])

    def stop(self) -> None:
        """End the threads. In a forked child there are none, and their locks are not to be touched."""
        if self.pid != os.getpid():
            return
        self._stop.set()
        self._prefetch.stop()
        if self._fetcher is not None:
            self._fetcher.stop()

    def _calls(self, at: Cursor, epochs: int | None) -> Iterator[Callable[[], _Chunk]]:
        """What is to be made, in order. Only this looks at the order, so that one permutation is enough."""
        plan = self._plan
        epoch, batch = at
        while epochs is None or epoch < epochs:
            order = windows.Epoch(self._pieces, self._window, plan.seed, epoch)
            seen = -1
            while batch < plan.batches:
                stop = min(batch + self._together, plan.batches)
                first = batch * plan.batch_size
                seen = self._look_ahead(order, seen, order.window_of(first))
                shards, rows = order.take(first, stop * plan.batch_size)
                yield partial(self._make, shards, rows, stop - batch)
                batch = stop
            epoch, batch = epoch + 1, 0

    def _look_ahead(self, order: windows.Epoch, seen: int, window: int) -> int:
        """Have the shards of a window that begins fetched, and those of the next if the cache holds both."""
        if window == seen:
            return window
        wanted = order.shards_of(window).tolist()
        self._reader.need(wanted)
        if self._fetcher is None:
            return window
        more = wanted + order.shards_of(window + 1).tolist()
        limit = self._reader.cache_limit
        self._fetcher.want(more if self._size_of(more) <= limit else wanted)
        if seen < 0 and self._size_of(wanted) > limit:
            say(
                f"the shards of one window of {self._window} samples have {self._size_of(wanted)} bytes and the cache "
                f"holds {limit}, so that they are fetched again and again; raise HOLDFAST_CACHE_BYTES, or lower window"
            )
        return window

    def _size_of(self, shards: list[int]) -> int:
        return sum(self._reader.index.shards[number].size_bytes for number in set(shards))

    def _make(self, shards: Indices, rows: Indices, count: int) -> _Chunk:
        """Batches of the samples that are given: this rank's stripe of them, or, of a partition, all."""
        plan = self._plan
        size, anywhere = plan.batch_size, int(shards[0])
        if not plan.partition:
            shards, rows = shards[plan.rank :: plan.world_size], rows[plan.rank :: plan.world_size]
            size //= plan.world_size
        ends = [min((n + 1) * size, len(rows)) for n in range(count)]
        if not len(rows):
            empty = Part(self._reader.content(anywhere, self._stop), rows)
            return _Chunk(assemble([empty], None, self._memory), ends)
        grouped = np.argsort(shards, kind="stable")
        there, begins = np.unique(shards[grouped], return_index=True)
        limits = [*begins.tolist(), len(rows)]
        if len(there) == 1:
            return _Chunk(
                assemble([Part(self._reader.content(int(there[0]), self._stop), rows)], None, self._memory),
                ends,
            )
        parts = [
            Part(self._reader.content(number, self._stop), rows[grouped[limits[n] : limits[n + 1]]])
            for n, number in enumerate(there.tolist())
        ]
        return _Chunk(assemble(parts, grouped, self._memory), ends)
