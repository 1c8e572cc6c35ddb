"""What the watchers of a job share: one look at it when it has changed, however many of them there are."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import ExitStack
from dataclasses import dataclass

from holdfast.v1 import job_pb2
from holdfast_coordinator import codec
from holdfast_coordinator.core.model import TERMINAL
from holdfast_coordinator.core.state import State
from holdfast_coordinator.engine import Engine
from holdfast_coordinator.rpc.watches import WATCH_PAUSE_S, WATCH_PAUSE_S_A_RANK

WATCH_PAUSE_S_A_WATCHER = 0.0002
"""Added for each: to tell a thousand of them takes some tenths of a second."""
AT_ONCE = 20
"""Told in one go: agents wait meanwhile."""

Look = Callable[[State, str], job_pb2.Job]


@dataclass(frozen=True, slots=True)
class _Shown:
    """A job as it was at a look; of two looks the later has the larger number."""

    number: int
    job: job_pb2.Job


class _Watched:
    """A job that somebody watches."""

    def __init__(self) -> None:
        self.watchers = 0
        self.open = ExitStack()
        self.shown: _Shown | None = None
        self.error: Exception | None = None
        self._waiting: dict[asyncio.Future[None], None] = {}

    async def show(self, shown: _Shown) -> None:
        self.shown = shown
        await self._wake()

    async def fail(self, error: Exception) -> None:
        self.error = error
        await self._wake()

    async def after(self, number: int) -> _Shown:
        """The newest look, once there is one after that."""
        while self.shown is None or self.shown.number <= number:
            if self.error is not None:
                raise self.error
            turn = asyncio.get_running_loop().create_future()
            self._waiting[turn] = None
            try:
                await turn
            finally:
                self._waiting.pop(turn, None)
        return self.shown

    async def _wake(self) -> None:
        for count, turn in enumerate(list(self._waiting), 1):
            if not turn.done():
                turn.set_result(None)
            if count % AT_ONCE == 0:
                await asyncio.sleep(0)


class JobWatches:
    """All jobs that are watched. `look` raises RefusedError for one that is not there."""

    def __init__(self, engine: Engine, look: Look) -> None:
        self._engine = engine
        self._look = look
        self._watched: dict[str, _Watched] = {}
        self._looks = 0

    async def follow(self, job_id: str) -> AsyncGenerator[job_pb2.Job, None]:
        """Give the job now, and as it is after changes, until it has ended. Raises RefusedError, NotLeadingError."""
        watched = self._watched.get(job_id) or self._begin(job_id)
        watched.watchers += 1
        try:
            # Looked at anew: what others were shown last may be older than what the caller knows.
            shown = await self._see(job_id)
            yield shown.job
            while codec.JOB_STATES[shown.job.state] not in TERMINAL:
                shown = await watched.after(shown.number)
                yield shown.job
        finally:
            watched.watchers -= 1
            if not watched.watchers:
                self._end(job_id, watched)

    def _begin(self, job_id: str) -> _Watched:
        watched = self._watched[job_id] = _Watched()
        changed = watched.open.enter_context(self._engine.watch(job_id))
        task = asyncio.create_task(self._keep_showing(job_id, watched, changed))
        watched.open.callback(task.cancel)
        return watched

    def _end(self, job_id: str, watched: _Watched) -> None:
        watched.open.close()
        if self._watched.get(job_id) is watched:
            del self._watched[job_id]

    async def _keep_showing(self, job_id: str, watched: _Watched, changed: asyncio.Event) -> None:
        try:
            while True:
                await changed.wait()
                ranks = len(watched.shown.job.workers) if watched.shown is not None else 0
                pause = WATCH_PAUSE_S + ranks * WATCH_PAUSE_S_A_RANK
                await asyncio.sleep(pause + watched.watchers * WATCH_PAUSE_S_A_WATCHER)
                changed.clear()
                await watched.show(await self._see(job_id))
        except Exception as error:  # noqa: BLE001  whatever it is, they must not wait for ever
            self._watched.pop(job_id, None)  # who comes now begins anew
            await watched.fail(error)

    async def _see(self, job_id: str) -> _Shown:
        def ask(state: State) -> _Shown:
            self._looks += 1
            return _Shown(self._looks, self._look(state, job_id))

        return await self._engine.read(ask)
