"""The workers of this node as processes: spawned, adopted, signalled, and seen to their end."""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import structlog

from holdfast import heartbeat
from holdfast_agent import convert, core, orphans
from holdfast_agent.core import Ended, Key, Phase
from holdfast_agent.fork_link import NurseryLostError, SpawnError, Started
from holdfast_agent.readable import readable
from holdfast_agent.shim import EXIT, SHIM
from holdfast_agent.spawn import Nursery, describe_exit, signal_shim
from holdfast_agent.warm import Warm, Warmth
from holdfast_agent.workdir import Attempt, StateDir

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Order:
    """What to start: the content of start.json, of resume, and of datasets.json where it is still to be written.

    With `warmth` it starts warm where it can.
    """

    key: Key
    start: dict[str, Any]
    resume: bytes
    datasets: bytes = b""
    warmth: Warmth | None = None


class Crew:
    """Live workers by key. `report` hears of what becomes of them: WorkerSpawned and WorkerEnded."""

    def __init__(
        self, state_dir: StateDir, *, foreground: bool, report: Callable[[core.Event], None]
    ) -> None:
        self._state_dir = state_dir
        self._report = report
        self._nursery = Nursery(foreground=foreground)
        self.warm = Warm(state_dir, self._nursery, foreground=foreground)
        self._pidfds: dict[Key, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._ending = False

    def start(self) -> None:
        """Get ready to spawn."""
        self._nursery.start()

    async def stop(self, *, workers: bool) -> None:
        """Let go of everything; with `workers`, end them first."""
        if workers:
            self._ending = True
            for key in list(self._pidfds):
                self.signal(key, force=True)
            await asyncio.gather(*self._tasks, return_exceptions=True)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.warm.stop()
        self._nursery.stop()

    def spawn(self, order: Order) -> None:
        """Start a worker, behind the caller's back."""
        self._in_background(self._spawn(order))

    def signal(self, key: Key, *, force: bool) -> None:
        """Stop a worker: with grace, or at once."""
        pidfd = self._pidfds.get(key)
        if pidfd is not None:
            signal_shim(pidfd, force=force)

    def page(self, key: Key) -> bytes:
        """The heartbeat page of a worker; empty while it has none."""
        return self._state_dir.attempt(key).read_heartbeat()

    def recover(self) -> tuple[list[core.Worker], dict[tuple[str, int], int]]:
        """Find what an agent before us left: workers that run or that ended unreleased, and the fences."""
        workers = []
        fences: dict[tuple[str, int], int] = {}
        for attempt in self._state_dir.attempts():
            if not attempt.released:
                worker = self._recover(attempt)
                if worker is None:
                    continue
                workers.append(worker)
            rank = (attempt.key.job_id, attempt.key.rank)
            fences[rank] = max(fences.get(rank, 0), attempt.key.attempt)
        return workers, fences

    def _recover(self, attempt: Attempt) -> core.Worker | None:
        if attempt.read(EXIT) is None and not self._begun(attempt):
            attempt.remove()  # the coordinator says its start again
            return None
        ended = _ended_as_recorded(attempt)
        if ended is not None:
            return core.Worker(attempt.key, Phase.ENDED, ended=ended)
        started = attempt.read(SHIM)
        self._in_background(self._adopt(attempt))
        if started is None:
            return core.Worker(attempt.key, Phase.STARTING)
        return core.Worker(attempt.key, Phase.RUNNING, started["worker_pid"], started["worker_start_time"])

    @staticmethod
    def _begun(attempt: Attempt) -> bool:
        """Whether its worker may have been started, or may yet be."""
        lock = attempt.try_lock()
        if lock is None:
            return True
        try:
            return attempt.begun
        finally:
            os.close(lock)

    async def _spawn(self, order: Order) -> None:
        key = order.key
        try:
            if order.datasets:
                self._state_dir.write_datasets(key.job_id, order.datasets)
            attempt, lock = self._state_dir.create(key, order.start, order.resume)
            started = await self._shim(attempt, lock, order.warmth)
        except NurseryLostError:
            # With its last breath it may have forked the shim.
            await self._adopt(self._state_dir.attempt(key))
        except (OSError, SpawnError) as error:
            log.error("a worker could not be started", worker=key, error=str(error))
            self._report(core.WorkerEnded(key, _ended_now(f"its agent could not start it: {error}")))
        else:
            self._pidfds[key] = started.pidfd
            if started.pid:
                self._report(core.WorkerSpawned(key, started.pid, started.pid_start))
            await self._see_to_its_end(attempt)

    async def _shim(self, attempt: Attempt, lock: int, warmth: Warmth | None) -> Started:
        """Start the shim of an attempt, warm or cold. Closes `lock`. Raises SpawnError and NurseryLostError."""
        if warmth is None:
            return await self._nursery.shim(attempt, lock)
        try:
            started = await self.warm.shim(attempt, lock, warmth)
        except (NurseryLostError, SpawnError):
            started = None
        except BaseException:
            os.close(lock)
            raise
        if started is None or not (started.pid or attempt.begun):
            if started is not None:
                os.close(started.pidfd)
            # Without ours, the lock tells whether there is a shim; where there never was one, start it cold.
            # While it is held, the shim is just about to begin, or who held it for the shim is about to be gone.
            os.close(lock)
            while (again := attempt.try_lock()) is None and not attempt.begun:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            if again is None or attempt.begun:
                if again is not None:
                    os.close(again)
                raise NurseryLostError
            return await self._nursery.shim(attempt, again)
        os.close(lock)
        return started

    async def _adopt(self, attempt: Attempt) -> None:
        """See to the end of a worker whose shim this agent was not given: it lives, or is gone, or has just begun."""
        while (lock := attempt.try_lock()) is None:
            shim = attempt.read(SHIM)
            if shim is None:
                await asyncio.sleep(0.005)  # it is starting its worker, which takes a few milliseconds
                continue
            try:
                # The lock is held, so that the pid is still the shim's own.
                self._pidfds[attempt.key] = os.pidfd_open(shim["pid"])
            except ProcessLookupError:
                break
            self._report(core.WorkerSpawned(attempt.key, shim["worker_pid"], shim["worker_start_time"]))
            await self._see_to_its_end(attempt)
            return
        if lock is not None:
            os.close(lock)
        self._report(core.WorkerEnded(attempt.key, await _how_it_ended(attempt)))

    async def _see_to_its_end(self, attempt: Attempt) -> None:
        pidfd = self._pidfds[attempt.key]
        if self._ending:
            signal_shim(pidfd, force=True)
        try:
            await readable(pidfd)
        finally:
            del self._pidfds[attempt.key]
            os.close(pidfd)
        self._report(core.WorkerEnded(attempt.key, await _how_it_ended(attempt)))

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a worker is no longer watched", exc_info=task.exception())


def _ended_as_recorded(attempt: Attempt) -> Ended | None:
    """How its shim says that an attempt ended; None while it does not, and when it was killed before it could."""
    found = attempt.read(EXIT)
    if found is None:
        return None
    if found["dropped_bytes"]:
        log.warning("the disk took not all of its output", worker=attempt.key, lost=found["dropped_bytes"])
    return convert.ended_from_disk(found, describe_exit(found), heartbeat.read(attempt.read_heartbeat()))


async def _how_it_ended(attempt: Attempt) -> Ended:
    """How an attempt ended whose shim is gone."""
    recorded = _ended_as_recorded(attempt)
    if recorded is not None:
        return recorded
    if not attempt.begun:
        return _ended_now("its agent could not start it: the process that starts workers was killed")
    await orphans.end(f"HOLDFAST_HEARTBEAT_FILE={attempt.heartbeat}")
    page = heartbeat.read(attempt.read_heartbeat())
    return _ended_now("killed: its shim was killed", killed_by=signal.SIGKILL, page=page)


def _ended_now(message: str, *, killed_by: int = 0, page: heartbeat.Reading | None = None) -> Ended:
    """An end that no shim has recorded."""
    found = {"code": -1, "signal": killed_by, "at_ms": time.time_ns() // 1_000_000}
    return convert.ended_from_disk(found, message, page or heartbeat.Reading())
