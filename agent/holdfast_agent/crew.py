"""The workers of this node as processes: spawned, adopted, signalled, and seen to their end."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog

from holdfast import heartbeat
from holdfast.v1 import agent_pb2, job_pb2
from holdfast_agent import convert, core
from holdfast_agent.core import Ended, Key, Phase
from holdfast_agent.readable import readable
from holdfast_agent.shim import start_time
from holdfast_agent.spawn import Nursery, SpawnError, describe_exit, signal_shim
from holdfast_agent.workdir import EXIT, HEARTBEAT, SHIM, Attempt, StateDir

SHIM_KILLED = "killed: its shim was killed"

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Order:
    """What to start: the content of start.json and of resume."""

    key: Key
    start: dict[str, Any]
    resume: bytes


class Crew:
    """Live workers by key. `report` hears of what becomes of them: WorkerSpawned and WorkerEnded."""

    def __init__(
        self, state_dir: StateDir, *, foreground: bool, report: Callable[[core.Event], None]
    ) -> None:
        self._state_dir = state_dir
        self._report = report
        self._nursery = Nursery(foreground=foreground)
        self._pidfds: dict[Key, int] = {}
        self._watchers: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Get ready to spawn."""
        self._nursery.start()

    async def stop(self, *, workers: bool) -> None:
        """Let go of everything; with `workers`, end them first."""
        if workers:
            for key in list(self._pidfds):
                self.signal(key, force=True)
            await asyncio.gather(*self._watchers, return_exceptions=True)
        for watcher in self._watchers:
            watcher.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)
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
        return read_page(self._state_dir.attempt(key))

    def recover(self) -> tuple[list[core.Worker], dict[tuple[str, int], int]]:
        """Find what an agent before us left: workers that run or that ended unreleased, and the fences."""
        workers = []
        fences: dict[tuple[str, int], int] = {}
        for attempt in self._state_dir.attempts():
            worker = None if attempt.released else self._recover(attempt)
            if worker is not None:
                workers.append(worker)
            if attempt.path.exists():
                rank = (attempt.key.job_id, attempt.key.rank)
                fences[rank] = max(fences.get(rank, 0), attempt.key.attempt)
        return workers, fences

    def _recover(self, attempt: Attempt) -> core.Worker | None:
        key = attempt.key
        if attempt.read(EXIT) is None:
            lock = attempt.try_lock()
            if lock is None:
                return self._adopt(attempt)
            try:
                if attempt.read(EXIT) is None and attempt.read(SHIM) is None:
                    attempt.remove()  # its start never began; the coordinator says it again
                    return None
            finally:
                os.close(lock)
        return core.Worker(key, Phase.ENDED, ended=_how_it_ended(attempt))

    def _adopt(self, attempt: Attempt) -> core.Worker:
        """Watch a worker whose shim is alive, or about to have started it."""
        found = attempt.read(SHIM)
        if found is None:
            self._in_background(self._adopt_when_started(attempt))
            return core.Worker(attempt.key, Phase.STARTING)
        try:
            pidfd = os.pidfd_open(found["pid"])
        except ProcessLookupError:
            return core.Worker(attempt.key, Phase.ENDED, ended=_how_it_ended(attempt))
        self._in_background(self._see_to_its_end(attempt, pidfd))
        return core.Worker(attempt.key, Phase.RUNNING, found["worker_pid"], found["worker_start_time"])

    async def _adopt_when_started(self, attempt: Attempt) -> None:
        """The agent before us died in the few milliseconds in which a shim starts its worker: wait for the shim."""
        while attempt.read(SHIM) is None:
            lock = attempt.try_lock()
            if lock is not None:
                os.close(lock)
                self._report(core.WorkerEnded(attempt.key, _how_it_ended(attempt)))
                return
            await asyncio.sleep(0.005)
        worker = self._adopt(attempt)
        self._report(core.WorkerSpawned(worker.key, worker.pid, worker.pid_start))

    async def _spawn(self, order: Order) -> None:
        key = order.key
        try:
            attempt, lock = self._state_dir.create(key, order.start, order.resume)
            started = await self._nursery.shim(attempt, lock)
        except (OSError, SpawnError) as error:
            log.error("a worker could not be started", worker=key, error=str(error))
            self._report(core.WorkerEnded(key, _not_started(f"its agent could not start it: {error}")))
            return
        if started.pid:
            self._pidfds[key] = started.pidfd
            self._report(core.WorkerSpawned(key, started.pid, started.pid_start))
        await self._see_to_its_end(attempt, started.pidfd)

    async def _see_to_its_end(self, attempt: Attempt, pidfd: int) -> None:
        self._pidfds[attempt.key] = pidfd
        try:
            await readable(pidfd)
        finally:
            del self._pidfds[attempt.key]
            os.close(pidfd)
        self._report(core.WorkerEnded(attempt.key, _how_it_ended(attempt)))

    def _in_background(self, coroutine: Any) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._watchers.add(task)
        task.add_done_callback(self._watchers.discard)


def read_page(attempt: Attempt) -> bytes:
    """The heartbeat page of an attempt; empty when it has none."""
    try:
        return (attempt.path / HEARTBEAT).read_bytes()
    except FileNotFoundError:
        return b""


def _how_it_ended(attempt: Attempt) -> Ended:
    """Read how an attempt ended whose shim is gone."""
    page = heartbeat.read(read_page(attempt))
    found = attempt.read(EXIT)
    if found is not None:
        return convert.ended_from_disk(found, describe_exit(found), page)
    _end_tree_of(attempt)
    found = {"code": -1, "signal": int(signal.SIGKILL), "at_ms": time.time_ns() // 1_000_000}
    return convert.ended_from_disk(found, SHIM_KILLED, page)


def _end_tree_of(attempt: Attempt) -> None:
    """End what a killed shim left: the worker had its death signal, the rest of its process group has not."""
    found = attempt.read(SHIM)
    if found is None:
        return
    pid = found["worker_pid"]
    if start_time(pid) in (0, found["worker_start_time"]):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)


def _not_started(message: str) -> Ended:
    status = job_pb2.ExitStatus(code=-1, message=message)
    status.at.GetCurrentTime()
    return Ended(agent_pb2.Exit(status=status))
