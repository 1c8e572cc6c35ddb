"""Who watches all of something, and what each of them has yet to be shown.

A watcher is told names, and never what they stand for: it looks that up when it gets to it. So whatever changes faster
than a watcher reads is shown to it once, as it is by then, and one that does not read at all costs no more than a name
for everything that there is.
"""

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum

from holdfast_coordinator.core.effects import Append, Delete, Put, Write
from holdfast_coordinator.core.model import Entry, Gang, Job, Node, Worker


class Topic(Enum):
    """What can be watched."""

    JOBS = 1
    WORKERS = 2
    """Jobs as well; what their workers do is a change of them."""
    NODES = 3
    EVENTS = 4


class WatchOverError(Exception):
    """The watcher has to begin anew; the message says why."""


class Watch:
    """One watcher."""

    def __init__(self) -> None:
        self._due: dict[str, None] = {}
        self._shown: dict[str, int] = {}
        """What everything was like when it was shown last; 0: it was not yet."""
        self._changed = asyncio.Event()
        self._over = ""

    def mark(self, name: str) -> None:
        """Note a change."""
        self._due[name] = None
        self._changed.set()

    def gone(self, name: str) -> None:
        """Note the end of something; nobody is told of it who never saw it."""
        if name in self._shown:
            self.mark(name)
        else:
            self._due.pop(name, None)

    def end(self, why: str) -> None:
        """Have it begin anew."""
        self._over = why
        self._changed.set()

    async def changed(self) -> None:
        """Wait until there is something to show. Raises WatchOverError."""
        await self._changed.wait()
        if self._over:
            raise WatchOverError(self._over)

    def take(self, names: Iterable[str] = ()) -> Sequence[str]:
        """What is to be looked at now: `names`, or else all that has changed since it was taken last."""
        taken = tuple(names)
        if not taken:
            taken = tuple(self._due)
            self._due.clear()
            if not self._over:
                self._changed.clear()
        for name in taken:
            self._shown.setdefault(name, 0)
        return taken

    def is_news(self, name: str, content: bytes | None) -> bool:
        """Note what is shown of a name now, None: it is gone. Whether that is other than what was shown before."""
        before = self._shown.pop(name, 0)
        if content is None:
            return bool(before)
        self._shown[name] = hash(content) or 1
        return self._shown[name] != before


class Changes:
    """All watchers."""

    def __init__(self) -> None:
        self._watches: dict[tuple[Topic, str], set[Watch]] = {}

    @contextmanager
    def watch(self, topic: Topic, only: str = "") -> Iterator[Watch]:
        """Watch a topic; of events only those of one job, when it is named."""
        watch = Watch()
        self._watches.setdefault((topic, only), set()).add(watch)
        try:
            yield watch
        finally:
            there = self._watches[topic, only]
            there.discard(watch)
            if not there:
                del self._watches[topic, only]

    def note(self, writes: Iterable[Write]) -> None:
        """Note what has become durable."""
        if not self._watches:
            return
        for write in writes:
            match write:
                case Append(Entry(job_id=job_id)):
                    for about in {"", job_id}:
                        for watch in self._watches.get((Topic.EVENTS, about), ()):
                            watch.mark(about)
                case Delete(Job(id=job_id)):
                    self._gone(job_id, Topic.JOBS, Topic.WORKERS)
                case Put(Job(id=job_id)) | Put(Gang(job_id=job_id)):
                    self.mark(job_id, Topic.JOBS, Topic.WORKERS)
                case Put(Worker(job_id=job_id, node=node)):
                    self.mark(job_id, Topic.WORKERS)
                    if node:
                        self.mark(node, Topic.NODES)
                case Put(Node(name=name)):
                    self.mark(name, Topic.NODES)
                case Delete(Node(name=name)):
                    self._gone(name, Topic.NODES)
                case _:
                    pass

    def mark(self, name: str, *topics: Topic) -> None:
        """Note a change of what is in no store."""
        for topic in topics:
            for watch in self._watches.get((topic, ""), ()):
                watch.mark(name)

    def end(self, why: str) -> None:
        """Have everyone begin anew."""
        for watches in self._watches.values():
            for watch in watches:
                watch.end(why)

    def _gone(self, name: str, *topics: Topic) -> None:
        for topic in topics:
            for watch in self._watches.get((topic, ""), ()):
                watch.gone(name)
