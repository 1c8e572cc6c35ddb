"""All that an agent does for the logs of its workers, beside handing them out."""

import asyncio
from collections.abc import Callable, Collection

from holdfast_agent.archiver import Archiver
from holdfast_agent.log_keeper import Keeper
from holdfast_agent.log_metrics import LogMetrics
from holdfast_agent.shim import EXIT, START
from holdfast_agent.workdir import Attempt, StateDir


class LogCare:
    """Keeps logs below their limit, archives them, finds metrics in them: as start.json of an attempt says."""

    def __init__(self, state_dir: StateDir, live_jobs: Callable[[], Collection[str]]) -> None:
        self._state_dir = state_dir
        self._keeper = Keeper(state_dir.job, live_jobs)
        self._archiver = Archiver()
        self._metrics = LogMetrics()

    async def run(self) -> None:
        """Work until cancelled; begin with what an agent before left."""
        left = await asyncio.to_thread(self._left)
        self._archiver.add(left)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._keeper.run())
            tasks.create_task(self._archiver.run())

    async def stop(self) -> None:
        """End what was started."""
        await self._metrics.stop()

    def started(self, attempt: Attempt) -> None:
        """A worker runs."""
        if self.measures(attempt):
            self._metrics.watch(attempt.path)

    async def ended(self, attempt: Attempt) -> None:
        """A worker writes no more. Waits until its metrics are found."""
        if self.measures(attempt):
            await self._metrics.settle(attempt.path)
        if _wants(attempt, "archive"):
            self._archiver.add([attempt])

    @staticmethod
    def measures(attempt: Attempt) -> bool:
        """Metrics are to be found in its logs."""
        return _wants(attempt, "log_metrics")

    def _left(self) -> list[Attempt]:
        return [
            attempt
            for attempt in self._state_dir.attempts()
            if ((attempt.path / EXIT).exists() or attempt.released) and _wants(attempt, "archive")
        ]


def _wants(attempt: Attempt, what: str) -> bool:
    start = attempt.read(START)
    return bool(start and start.get(what))
