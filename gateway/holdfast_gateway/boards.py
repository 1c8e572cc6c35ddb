"""One watch of a job for all who look at it: a thousand of them cost the coordinator what one costs.

A board has a job as it was told last. Whoever looks is told of the newest, and not of what it was in between, so that
one who is slow costs nothing more. As JSON it is written once for all, and when somebody takes it.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from holdfast.client import TERMINAL, Client
from holdfast.v1 import job_pb2
from holdfast_gateway.answers import to_json
from holdfast_gateway.iteration import closing


class Board:
    """A job, and how often it has changed."""

    def __init__(self) -> None:
        self.readers = 0
        self.job: job_pb2.Job | None = None
        self.error: Exception | None = None
        self._version = 0
        self._written = (0, "")
        self._news = asyncio.Event()

    @property
    def over(self) -> bool:
        """Nothing comes any more."""
        return self.error is not None or (self.job is not None and self.job.state in TERMINAL)

    async def later_than(self, seen: int) -> int:
        """Wait for a newer version than the one that was seen, and give its number. Raises what ended the watch."""
        while self._version <= seen:
            if self.error is not None:
                raise self.error
            await self._news.wait()
        return self._version

    def text(self) -> str:
        """The job as JSON."""
        assert self.job is not None
        if self._written[0] != self._version:
            self._written = self._version, to_json(self.job)
        return self._written[1]

    async def keep(self, client: Client, job_id: str) -> None:
        """Follow the job."""
        try:
            async with closing(client.watch_job(job_id)) as jobs:
                async for job in jobs:
                    self.job = job
                    self._tell()
        except Exception as error:  # noqa: BLE001  whoever looks is told
            self.error = error
            self._tell(changed=False)

    def _tell(self, *, changed: bool = True) -> None:
        self._version += changed
        self._news.set()
        self._news = asyncio.Event()


class Boards:
    """The boards that somebody looks at."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._boards: dict[str, Board] = {}
        self._tasks: dict[Board, asyncio.Task[None]] = {}

    @asynccontextmanager
    async def look(self, job_id: str) -> AsyncIterator[Board]:
        """The board of a job, while somebody looks at it. One that has ended is not shared: the job may run again."""
        board = self._boards.get(job_id)
        if board is None or board.over:
            board = self._boards[job_id] = Board()
            self._tasks[board] = asyncio.create_task(board.keep(self._client, job_id))
        board.readers += 1
        try:
            yield board
        finally:
            board.readers -= 1
            if not board.readers:
                self._tasks.pop(board).cancel()
                if self._boards.get(job_id) is board:
                    del self._boards[job_id]
