"""Preloaded processes of this node's jobs: one zygote a job, or some spares. Asked for shims, replaced, and ended.

What can't start warm starts cold: nothing here is ever a reason not to start a worker. Why it can't is said once.
"""

import asyncio
import contextlib
import json
import os
import signal
import socket
from collections.abc import Callable, Container, Coroutine
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from holdfast_agent.fork_link import ForkLink, NurseryLostError, ReportPipe, SpawnError, Started, ask_for_shim
from holdfast_agent.readable import readable
from holdfast_agent.spawn import Nursery
from holdfast_agent.workdir import Attempt, StateDir

IMPORTED_WITHIN_S = 300.0
ANSWERS_WITHIN_S = 30.0
"""A process that doesn't is stopped, or hangs; it is killed."""
ENDS_WITHIN_S = 2.0
MOST_LOSSES = 3
"""Of processes in a row that died before they were of any use; then the job's workers start cold."""
GROWTH_BYTES, GROWTH_SHARE = 64 * 2**20, 0.25
"""A zygote whose memory has grown by both together since the imports is replaced: something leaks into every worker."""
SAID_BYTES = 8192

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Warmth:
    """How a job's workers start warm."""

    plan: dict[str, Any]
    """See spare.py; but for ``spare``, ``agent`` and ``cgroup``, which are filled in here."""
    spares: int
    """How many processes wait; 0: a zygote, or one where it may not fork."""
    linger_s: float
    """How long they wait when no worker of the job is here."""
    cold: str = ""
    """Why its command can't start warm; then `plan` has no more than ``preload``."""


@dataclass(frozen=True, slots=True)
class Preload:
    """What there is for a job, for people."""

    job_id: str
    modules: tuple[str, ...]
    pids: tuple[int, ...]
    memory_bytes: int
    started: int
    """Workers that started warm, all processes together."""
    forks: bool
    reason: str
    """Why it does not fork, or why workers start cold; empty when all is well."""


class Warm:
    """All of them. Belongs to one event loop."""

    def __init__(
        self,
        state_dir: StateDir,
        nursery: Nursery,
        place: Callable[[str], dict[str, Any]],
        *,
        foreground: bool,
    ) -> None:
        """`place` says in which control groups what a job has preloaded waits."""
        self._state_dir = state_dir
        self._nursery = nursery
        self._place = place
        self._agent = os.getpid() if foreground else 0
        self._jobs: dict[str, _Job] = {}

    async def shim(self, attempt: Attempt, lock: int, warmth: Warmth) -> Started | None:
        """Start an attempt warm. None: it can't, start it cold. `lock` stays open.

        Raises SpawnError, and NurseryLostError when only its directory can tell whether there is a shim.
        """
        job_id = attempt.key.job_id
        job = self._jobs.get(job_id)
        if job is None:
            job = self._jobs[job_id] = _Job(job_id, warmth, self._launch)
        return await job.shim(attempt, lock)

    def end(self, job_id: str) -> None:
        """End the processes of a job that is over."""
        job = self._jobs.pop(job_id, None)
        if job is not None:
            job.end()

    def note_live(self, live_jobs: Callable[[], Container[str]]) -> None:
        """Learn which jobs have a worker here: what waits for the others goes on waiting for a while, and ends."""
        if not self._jobs:
            return
        live = live_jobs()
        for job_id, job in self._jobs.items():
            job.linger(None if job_id in live else partial(self.end, job_id))

    def preloads(self) -> list[Preload]:
        """What there is."""
        return [job.describe() for _, job in sorted(self._jobs.items())]

    async def stop(self) -> None:
        """End them all, and wait until they are gone."""
        jobs, self._jobs = list(self._jobs.values()), {}
        await asyncio.gather(*[job.stop() for job in jobs])

    async def _launch(self, job_id: str, plan: dict[str, Any]) -> "_Process":
        """Have a process started. Raises OSError, SpawnError, NurseryLostError."""
        filled_in = {**plan, "agent": self._agent, "cgroup": self._place(job_id)}
        path = self._state_dir.write_plan(job_id, filled_in)
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(2)]
        try:
            pidfd = await self._nursery.spare(path, [theirs.fileno() for _, theirs in pairs])
        except BaseException:
            for ours, _ in pairs:
                ours.close()
            raise
        finally:
            for _, theirs in pairs:
                theirs.close()
        return _Process(pairs[0][0], pairs[1][0], pidfd)


class _Job:
    def __init__(
        self,
        job_id: str,
        warmth: Warmth,
        launch: Callable[[str, dict[str, Any]], Coroutine[Any, Any, "_Process"]],
    ) -> None:
        self._id = job_id
        self._warmth = warmth
        self._launch = launch
        self._processes: list[_Process] = []
        self._launching: set[asyncio.Task[None]] = set()
        self._why = "spares were asked for" if warmth.spares else ""
        self._cold = ""
        self._losses = 0
        self._started = 0
        self._ended = False
        self._timer: asyncio.TimerHandle | None = None
        if warmth.cold:
            self._give_up(warmth.cold)

    async def shim(self, attempt: Attempt, lock: int) -> Started | None:
        """See `Warm.shim`."""
        self._fill()
        if (
            not self._why
        ):  # whether it may fork is not known before it has imported; later it is there, or soon will be
            await self._first()
        process = next((process for process in self._processes if process.ready), None)
        if process is None or self._cold:
            return None
        try:
            async with asyncio.timeout(ANSWERS_WITHIN_S):
                started = await (process.fork if process.forks else process.become)(attempt, lock)
        except BrokenPipeError:
            return None
        except TimeoutError as error:
            log.warning("a preloaded process does not answer", job=self._id, pid=process.pid)
            await process.gone(within_s=0)
            raise NurseryLostError from error
        finally:
            if not process.forks or process.grown():
                self._retire(process)
        self._losses = 0
        self._started += bool(started.pid)
        return started

    def linger(self, end: Callable[[], None] | None) -> None:
        """End after a while; None: there are workers."""
        if end is None and self._timer is not None:
            self._timer.cancel()
            self._timer = None
        elif end is not None and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._warmth.linger_s, end)

    def describe(self) -> Preload:
        ready = [process for process in self._processes if process.ready]
        return Preload(
            job_id=self._id,
            modules=tuple(self._warmth.plan["preload"]),
            pids=tuple(process.pid for process in ready),
            memory_bytes=sum(process.memory() for process in ready),
            started=self._started,
            forks=any(process.forks for process in ready),
            reason=self._cold or self._why,
        )

    def end(self) -> None:
        """Let go of everything."""
        self._ended = True
        if self._timer is not None:
            self._timer.cancel()
        for task in self._launching:
            task.cancel()
        for process in self._processes:
            process.end()

    async def stop(self) -> None:
        """End, and wait until all is gone."""
        going = [process.gone(ENDS_WITHIN_S) for process in self._processes]
        self.end()
        await asyncio.gather(*self._launching, *going, return_exceptions=True)

    async def _first(self) -> None:
        """Wait until a process has imported, or it is clear that none will."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(IMPORTED_WITHIN_S):
                while not self._cold and not any(process.ready for process in self._processes):
                    waiting = list(self._launching)
                    if not waiting:
                        return
                    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                return
        self._give_up(f"the imports take longer than {IMPORTED_WITHIN_S:g} s")

    def _fill(self) -> None:
        """Start what is missing."""
        wanted = max(1, self._warmth.spares)
        while not self._cold and not self._ended and len(self._processes) + len(self._launching) < wanted:
            task = asyncio.get_running_loop().create_task(self._start())
            self._launching.add(task)
            task.add_done_callback(self._launching.discard)

    async def _start(self) -> None:
        """Start one process, and wait until it has imported."""
        try:
            process = await self._launch(self._id, {**self._warmth.plan, "spare": self._why})
        except (OSError, SpawnError, NurseryLostError) as error:
            self._lose(f"it could not be started: {error}")
            return
        try:
            said = await process.imported()
        except BaseException:
            process.end()
            raise
        if "why" in said:
            if said["why"] and not self._why:
                self._why = said["why"]
                log.warning(
                    "a preloaded process may not fork: each is a spare for one worker",
                    job=self._id,
                    why=self._why,
                )
            self._processes.append(process)
            process.watch(lambda: self._lost(process))
            return
        process.end()
        if "failed" in said:
            self._give_up(said["failed"])
        else:
            self._lose(f"it died while it imported: {said.get('died', 'nobody saw how')}")

    def _lost(self, process: "_Process") -> None:
        """A process has died that nobody told to."""
        if process in self._processes:
            self._processes.remove(process)
            process.end()
            self._lose("it died again and again")

    def _lose(self, why: str) -> None:
        if self._ended:
            return
        # Where this is called from one of these, it is as good as over.
        self._launching.discard(asyncio.current_task())
        self._losses += 1
        if self._losses >= MOST_LOSSES:
            self._give_up(why)
        else:
            self._fill()

    def _give_up(self, why: str) -> None:
        if not self._cold and not self._ended:
            self._cold = why
            log.warning("workers start cold, nothing is preloaded", job=self._id, why=why)

    def _retire(self, process: "_Process") -> None:
        if process in self._processes:
            self._processes.remove(process)
            process.end()
            self._fill()


class _Process:
    """A zygote or a spare, and its parent."""

    def __init__(self, control: socket.socket, forks: socket.socket, pidfd: int) -> None:
        control.setblocking(False)
        self._control = control
        self._link = ForkLink(forks, lambda: None)
        self._pidfd = pidfd
        self._watched = False
        self._open = True
        self.pid = 0
        self.forks = False
        self._memory = 0

    @property
    def ready(self) -> bool:
        """It can be asked."""
        return self._open and self.pid > 0

    async def imported(self) -> dict[str, Any]:
        """Wait until it has, or has died. Gives what its parent says (see spare.py); nothing when that is gone."""
        await readable(self._control.fileno())
        try:
            found = self._control.recv(SAID_BYTES)
        except OSError:
            found = b""
        said: dict[str, Any] = json.loads(found) if found else {}
        if "why" in said:
            self.pid, self.forks = said["pid"], not said["why"]
            self._memory = self.memory()
        return said

    def watch(self, lost: Callable[[], None]) -> None:
        """Have `lost` called when it has died."""
        self._watched = True
        asyncio.get_running_loop().add_reader(self._control, lost)

    async def fork(self, attempt: Attempt, lock: int) -> Started:
        """Have it fork a shim. Raises as `ForkLink.ask` does."""
        return await ask_for_shim(self._link, attempt.path, lock)

    async def become(self, attempt: Attempt, lock: int) -> Started:
        """Have it become the worker of an attempt, and its parent the shim. Raises BrokenPipeError, SpawnError."""
        self.pid = 0  # nobody else's
        self._unwatch()
        with ReportPipe() as report:
            try:
                socket.send_fds(self._control, [os.fsencode(attempt.path)], [lock, report.end])
            except OSError as error:
                raise BrokenPipeError from error
            pidfd = os.dup(self._pidfd)
            try:
                return await report.read(pidfd)
            except BaseException:
                os.close(pidfd)
                raise

    def grown(self) -> bool:
        """Whether it has taken more memory since than workers should inherit, and nobody is asking it just now."""
        return self._link.idle and self.memory() > self._memory * (1 + GROWTH_SHARE) + GROWTH_BYTES

    def memory(self) -> int:
        """Its resident memory in bytes; 0 when it is gone."""
        try:
            return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except (OSError, IndexError):
            return 0

    def end(self) -> None:
        """Let go of it, which ends it; what it has forked, or has become, goes on."""
        if not self._open:
            return
        self._open = False
        self._unwatch()
        self._link.close()
        self._control.close()
        os.close(self._pidfd)

    def gone(self, within_s: float) -> Coroutine[Any, Any, None]:
        """What waits until its parent is gone, also when this object has let go of it by then.

        Kills it when it takes longer, which kills the process: one that is stopped does not see that it is to end.
        """
        pidfd = os.dup(self._pidfd)

        async def wait() -> None:
            try:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(within_s):
                        await readable(pidfd)
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                await readable(pidfd)
            finally:
                os.close(pidfd)

        return wait()

    def _unwatch(self) -> None:
        if self._watched:
            self._watched = False
            asyncio.get_running_loop().remove_reader(self._control)
