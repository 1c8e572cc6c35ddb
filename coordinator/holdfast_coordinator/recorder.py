"""Puts the curves of jobs down: looks at them once in a while, and writes what it saw every few seconds.

It is a reader of the engine like any other, and works beside its loop. A coordinator that is killed loses the last
seconds of the curves. A store that fails costs them no more than points in between.
"""

import asyncio
import time
from collections.abc import Collection, Iterable
from contextlib import suppress
from functools import partial

import structlog

from holdfast_coordinator.core.account import summarize
from holdfast_coordinator.core.meter import Meter, said
from holdfast_coordinator.core.model import LIVE, TERMINAL
from holdfast_coordinator.core.series import Point, admitted, crowded_out, thin
from holdfast_coordinator.core.state import State
from holdfast_coordinator.engine import Engine, NotLeadingError
from holdfast_coordinator.store.api import StoreError
from holdfast_coordinator.store.sqlite_points import SqlitePoints

EVERY_S = 1.0
"""As often as heartbeats come,"""
EVERY_S_A_RANK = 0.002
"""and so much more seldom for every rank: to look at one takes some 20 microseconds of the engine's time."""
RANKS_AT_ONCE = 200
"""The engine does other things in between."""
WRITE_EVERY_S = 3.0
CLOSE_WITHIN_S = 2.0
"""An engine that has failed answers nobody."""

log = structlog.get_logger(__name__)

_Series = dict[str, list[Point]]


class Recorder:
    """The curves of the jobs of one engine."""

    def __init__(self, engine: Engine, points: SqlitePoints) -> None:
        self._engine = engine
        self._points = points
        self._meters: dict[str, Meter] = {}
        self._unwritten: dict[str, _Series] = {}
        self._since = engine.clock.now()
        self._over: set[str] | None = None
        """Jobs that have ended, of which nothing more comes; None: nobody has looked yet."""
        self._stored: set[str] | None = None
        """Jobs that may have points in the store; None: nobody has asked yet."""
        self._failure = ""
        self._closing = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look and to write."""
        self._since = self._engine.clock.now()
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Look once more, write what is left, and let go of the store."""
        self._closing.set()
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=CLOSE_WITHIN_S)
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        try:
            await asyncio.to_thread(self._points.close)
        except StoreError as error:
            self._failed(error)

    async def _run(self) -> None:
        written, ranks = time.monotonic(), 0
        while not self._closing.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(max(EVERY_S, ranks * EVERY_S_A_RANK)):
                    await self._closing.wait()
            with suppress(NotLeadingError):
                ranks = await self.look()
            if self._closing.is_set() or time.monotonic() - written >= WRITE_EVERY_S:
                await self.write()
                written = time.monotonic()

    async def look(self) -> int:
        """Look at every job that has something to say. Returns how many ranks these have. Raises NotLeadingError."""
        sizes, gone = await self._engine.read(self._due)
        await self._forget(gone)
        some: list[str] = []
        for number, job_id in enumerate(sizes, 1):
            some.append(job_id)
            if number == len(sizes) or sum(sizes[each] for each in some) >= RANKS_AT_ONCE:
                await self._engine.read(partial(self._measure, job_ids=tuple(some)))
                some.clear()
        return sum(sizes.values())

    async def write(self) -> None:
        """Write what was seen since; what can't be written now is tried again."""
        if not self._unwritten:
            return
        writing = {
            job_id: {name: list(points) for name, points in of_job.items()}
            for job_id, of_job in self._unwritten.items()
        }
        try:
            await asyncio.to_thread(self._points.add, writing)
        except StoreError as error:
            self._failed(error)
            for of_job in self._unwritten.values():
                for points in of_job.values():
                    for point in crowded_out(points):
                        points.remove(point)
            return
        self._failure = ""
        if self._stored is not None:
            self._stored |= writing.keys()
        for job_id, written in writing.items():
            left = self._unwritten.pop(job_id, None)
            if left is None:
                continue  # it was deleted meanwhile
            for name, points in written.items():
                del left[name][: len(points)]
            if any(left.values()):
                self._unwritten[job_id] = {name: points for name, points in left.items() if points}

    async def series(self, job_id: str, names: Collection[str], most: int) -> _Series:
        """Give the curves of a job by name, each of at most `most` points (0: all). Raises StoreError."""
        fresh = {name: list(points) for name, points in self._unwritten.get(job_id, {}).items()}
        found = await asyncio.to_thread(self._points.read, job_id, names)
        for name in admitted(found, fresh):
            if not names or name in names:
                known = found.setdefault(name, [])
                last = known[-1].at_ms if known else 0
                known += [point for point in fresh[name] if point.at_ms > last]
        return {name: thin(found[name], most) if most else found[name] for name in sorted(found)}

    def latest(self, job_id: str) -> Meter:
        """What was seen last of a job that runs; nothing of one that has said nothing."""
        return self._meters.get(job_id, Meter())

    def _due(self, state: State) -> tuple[dict[str, int], set[str]]:
        """The jobs to look at, with their sizes; and those that are gone."""
        over = {job.id for job in state.jobs.values() if job.state in TERMINAL}
        if self._over is None:
            self._over = {job_id for job_id in over if state.jobs[job_id].finished_ms < self._since}
        wanted = (*self._engine.reporting(), *(over - self._over))
        self._over = over
        sizes = {job_id: state.jobs[job_id].spec.world_size for job_id in wanted if job_id in state.jobs}
        known = (self._stored or set()) | self._meters.keys() | self._unwritten.keys()
        return sizes, known - state.jobs.keys()

    def _measure(self, state: State, *, job_ids: Iterable[str]) -> None:
        now = self._engine.clock.now()
        for job_id in job_ids:
            job = state.jobs.get(job_id)
            if job is None:
                continue
            workers = state.workers_of(job)
            running = self._engine.running(job, workers)
            over = job.state in TERMINAL
            at = job.finished_ms if over else now
            summary = summarize(job, state.gangs_of(job), workers, running, at)
            newest = said(workers, running)
            stepping = {worker.key for worker in workers if over or worker.state in LIVE}
            meter = self._meters.setdefault(job_id, Meter())
            of_job = self._unwritten.setdefault(job_id, {})
            for name, point in meter.measure(at, summary, newest, stepping).items():
                of_job.setdefault(name, []).append(point)
            if over:
                del self._meters[job_id]

    async def _forget(self, gone: set[str]) -> None:
        for job_id in gone:
            self._meters.pop(job_id, None)
            self._unwritten.pop(job_id, None)
        try:
            if self._stored is None:
                self._stored = set(await asyncio.to_thread(self._points.jobs))
                return  # those that are gone are found at the next look
            if stored := gone & self._stored:
                await asyncio.to_thread(self._points.forget, stored)
                self._stored -= stored
        except StoreError as error:
            self._failed(error)

    def _failed(self, error: StoreError) -> None:
        if self._failure != str(error):
            log.warning("curves of jobs are not kept for now; nothing else depends on that", error=str(error))
        self._failure = str(error)
