"""The workers of this node as processes: spawned, adopted, signalled, and seen to their end."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any

import structlog

from holdfast_agent import core
from holdfast_agent.core import Ended, Key, Phase, Stop
from holdfast_agent.fork_link import NurseryLostError, SpawnError, Started
from holdfast_agent.groups import Groups, name_of
from holdfast_agent.log_care import LogCare
from holdfast_agent.readable import readable
from holdfast_agent.shim import EXIT, SHIM, start_time
from holdfast_agent.spawn import Nursery, signal_shim
from holdfast_agent.warm import Warm, Warmth
from holdfast_agent.witness import Witness, never_begun, not_started
from holdfast_agent.workdir import Attempt, StateDir

log = structlog.get_logger(__name__)

STARTS = 3
"""Tries to start a worker while the process that forks is killed each time."""
SHIM_WITHIN_S = 1.0
"""How long a shim may take to end after its worker has, before it is taken for one that is stopped (SIGSTOP)."""
_SIGNALS = {Stop.GRACE: signal.SIGTERM, Stop.RESTART: signal.SIGUSR2, Stop.FORCE: signal.SIGUSR1}


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
        self,
        state_dir: StateDir,
        *,
        foreground: bool,
        report: Callable[[core.Event], None],
        groups: Groups,
        boot_id: str = "",
        logs: LogCare | None = None,
    ) -> None:
        """`logs` hears of attempts before `report` does."""
        self._state_dir = state_dir
        self._logs = logs
        self._report = report
        self._groups = groups
        self._witness = Witness(boot_id)
        self._nursery = Nursery(foreground=foreground)
        self.warm = Warm(state_dir, self._nursery, groups.place_of_preloaded, foreground=foreground)
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
                self.signal(key, Stop.FORCE)
            await asyncio.gather(*self._tasks, return_exceptions=True)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.warm.stop()
        self._nursery.stop()
        self._groups.close()
        self._witness.close()

    @property
    def watched(self) -> int:
        """How many shims are seen to their end."""
        return len(self._pidfds)

    def spawn(self, order: Order) -> None:
        """Start a worker, behind the caller's back."""
        self._in_background(order.key, self._spawn(order))

    def signal(self, key: Key, how: Stop) -> None:
        """Stop a worker: with one of the graces, or at once."""
        pidfd = self._pidfds.get(key)
        if pidfd is not None:
            signal_shim(pidfd, _SIGNALS[how])

    def fence(self, key: Key, why: str) -> None:
        """Stop a worker with grace, which nobody has told us to."""
        try:
            self._state_dir.attempt(key).fence(why)
        except OSError as error:  # not there yet, or a full disk: it ends all the same
            log.warning("why a worker is stopped could not be noted", worker=key, error=str(error))
        self.signal(key, Stop.GRACE)

    def page(self, key: Key) -> bytes:
        """The heartbeat page of a worker; empty while it has none."""
        return self._state_dir.attempt(key).read_heartbeat()

    def recover(self) -> tuple[list[core.Worker], dict[tuple[str, int], int]]:
        """Find what an agent before us left: workers that run or that ended unreleased, and the fences."""
        workers = []
        live: set[str] = set()
        fences: dict[tuple[str, int], int] = {}
        for attempt in self._state_dir.attempts():
            if not attempt.released:
                worker = self._recover(attempt)
                if worker is None:
                    continue
                workers.append(worker)
                if worker.phase is not Phase.ENDED:
                    live.add(name_of(attempt.key))
            rank = (attempt.key.job_id, attempt.key.rank)
            fences[rank] = max(fences.get(rank, 0), attempt.key.attempt)
        self._groups.sweep(live)
        return workers, fences

    def _recover(self, attempt: Attempt) -> core.Worker | None:
        if attempt.read(EXIT) is None and not self._begun(attempt):
            attempt.remove()  # the coordinator says its start again
            return None
        ended = self._witness.recorded_at_start(attempt)
        if ended is not None and not (self._logs is not None and self._logs.measures(attempt)):
            return core.Worker(attempt.key, Phase.ENDED, ended=ended)
        started = attempt.read(SHIM)
        self._in_background(attempt.key, self._adopt(attempt))
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
            started = await self._surely(attempt, lock, order.warmth)
        except NurseryLostError:
            # With its last breath it may have forked the shim.
            await self._adopt(self._state_dir.attempt(key))
        except (OSError, SpawnError) as error:
            log.error("a worker could not be started", worker=key, error=str(error))
            self._report(core.WorkerEnded(key, not_started(error, self._state_dir.path)))
        else:
            self._pidfds[key] = started.pidfd
            if started.pid:
                self._spawned(attempt, started.pid, started.pid_start)
            await self._see_to_its_end(attempt, started.pid, started.pid_start, started.report)

    async def _surely(self, attempt: Attempt, lock: int, warmth: Warmth | None) -> Started:
        """`_shim`, and again where it was lost with the process that forks: there was no worker, and no attempt."""
        for _ in range(STARTS - 1):
            try:
                started = await self._shim(attempt, lock, warmth)
            except NurseryLostError:
                lock = await self._unbegun(attempt)
            else:
                if started.pid or attempt.begun:
                    return started
                started.close()
                lock = await self._unbegun(attempt)
            log.warning("a start was lost; starting the worker again", worker=attempt.key)
        return await self._shim(attempt, lock, warmth)

    @staticmethod
    async def _unbegun(attempt: Attempt) -> int:
        """Wait until it is clear that there is no shim; gives the lock. Raises NurseryLostError when there is one.

        While the lock is held, the shim is just about to begin, or who held it for the shim is about to be gone.
        """
        while (lock := attempt.try_lock()) is None and not attempt.begun:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        if lock is None or attempt.begun:
            if lock is not None:
                os.close(lock)
            raise NurseryLostError
        return lock

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
                started.close()
            # Without ours, the lock tells whether there is a shim; where there never was one, start it cold.
            os.close(lock)
            return await self._nursery.shim(attempt, await self._unbegun(attempt))
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
            self._spawned(attempt, shim["worker_pid"], shim["worker_start_time"])
            await self._see_to_its_end(attempt, shim["worker_pid"], shim["worker_start_time"])
            return
        if lock is not None:
            os.close(lock)
        await self._ended(attempt)
        self._groups.tidy(attempt.key.job_id)

    async def _see_to_its_end(self, attempt: Attempt, pid: int, pid_start: int, report: int = -1) -> None:
        """Wait until a shim is gone; tell of its worker's end as soon as it has recorded that, which `report` says."""
        pidfd = self._pidfds[attempt.key]
        if self._ending:
            signal_shim(pidfd, signal.SIGUSR1)
        waking = asyncio.create_task(_wake_shim(attempt.key, pidfd, pid, pid_start))
        told = False
        try:
            if report >= 0:
                await readable(report)
                told = attempt.read(EXIT) is not None
                if told:
                    await self._ended(attempt)
            await readable(pidfd)
        finally:
            waking.cancel()
            await asyncio.gather(waking, return_exceptions=True)
            del self._pidfds[attempt.key]
            os.close(pidfd)
            if report >= 0:
                os.close(report)
        if not told:
            await self._ended(attempt)
        self._groups.tidy(attempt.key.job_id)

    def _spawned(self, attempt: Attempt, pid: int, pid_start: int) -> None:
        if self._logs is not None:
            self._logs.started(attempt)
        self._report(core.WorkerSpawned(attempt.key, pid, pid_start))

    async def _ended(self, attempt: Attempt) -> None:
        if self._logs is not None:
            await self._logs.ended(attempt)
        self._report(core.WorkerEnded(attempt.key, await self._how_it_ended(attempt)))

    async def _how_it_ended(self, attempt: Attempt) -> Ended:
        """How an attempt ended whose shim is gone."""
        recorded = await self._witness.recorded(attempt)
        if recorded is not None:
            return recorded
        if not attempt.begun:
            return never_begun("its agent could not start it: the process that starts workers was killed")
        return await self._witness.unrecorded(attempt)

    def _in_background(self, key: Key, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(partial(self._done, key))

    def _done(self, key: Key, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a worker is no longer watched", worker=key, exc_info=task.exception())


async def _wake_shim(key: Key, shim: int, pid: int, pid_start: int) -> None:
    """See that a worker's end is noticed although its shim is stopped: have it go on."""
    try:
        worker = os.pidfd_open(pid) if pid else -1
    except OSError:
        return  # it has ended, and was reaped by a shim that works
    if worker < 0:
        return
    try:
        # Opened before its start time is read, so that both are of one process: a pid may be another's by now.
        if start_time(pid) != pid_start:
            return
        await readable(worker)
        await asyncio.sleep(SHIM_WITHIN_S)
        log.info("a shim has not told of its worker's end yet; having it go on if it is stopped", worker=key)
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(shim, signal.SIGCONT)
    finally:
        os.close(worker)
