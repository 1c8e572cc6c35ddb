"""Logs: a StreamLogs call asks agents over their streams, and they answer on RPCs of their own.

An agent is told to open a log (OpenLog) and answers with a PushLogs stream that names the request. Between the two
is a small bounded queue: a reader that is slow slows the agent's reading down and nothing else.

Following goes on until the job has ended. Then whatever the followers had not read yet is read once more from
where each of them was: a worker's log is complete on disk before its exit is reported, so nothing is missed.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterable

import structlog

from holdfast.v1 import agent_pb2, job_pb2
from holdfast_coordinator.core.model import TERMINAL
from holdfast_coordinator.core.state import State
from holdfast_coordinator.engine import Engine
from holdfast_coordinator.rpc.tasks import first_of
from holdfast_coordinator.session import Session

ANSWER_WITHIN_S = 10.0
"""An agent that has not begun to push by then is passed over."""
CHUNKS_QUEUED = 8

Chunks = asyncio.Queue[job_pb2.StreamLogsResponse | None]

log = structlog.get_logger(__name__)


class _Feed:
    """What one agent pushes for one request."""

    def __init__(self) -> None:
        self.chunks: Chunks = asyncio.Queue(CHUNKS_QUEUED)
        self.begun = asyncio.Event()
        self.unwanted = asyncio.Event()

    async def receive(
        self, first: agent_pb2.PushLogsRequest, rest: AsyncIterator[agent_pb2.PushLogsRequest]
    ) -> None:
        """Queue what arrives, then None."""
        try:
            if first.HasField("chunk"):
                await self.chunks.put(first.chunk)
            async for message in rest:
                await self.chunks.put(message.chunk)
        finally:
            if not self.unwanted.is_set():
                await self.chunks.put(None)


class LogRelay:
    """Joins StreamLogs calls to the PushLogs streams that answer them."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._feeds: dict[str, _Feed] = {}

    async def take(self, requests: AsyncIterator[agent_pb2.PushLogsRequest]) -> bool:
        """Serve a PushLogs stream until it ends or its reader is gone. False: nobody waits for it."""
        first = await anext(requests, agent_pb2.PushLogsRequest())
        feed = self._feeds.get(first.request_id)
        if feed is None:
            return False
        feed.begun.set()
        await first_of(feed.receive(first, requests), feed.unwanted.wait())
        return True

    def read(self, request: job_pb2.StreamLogsRequest) -> AsyncIterator[job_pb2.StreamLogsResponse]:
        """Yield what the call asked for. The job is there, and has the ranks."""
        return _Reading(self, self._engine, request).chunks()

    async def pump(self, opened: agent_pb2.OpenLog, session: Session, into: Chunks) -> None:
        """Ask an agent for a log and move what it pushes into a queue, until it has pushed all of it."""
        feed = _Feed()
        self._feeds[opened.request_id] = feed
        try:
            session.send(opened)
            async with asyncio.timeout(ANSWER_WITHIN_S):
                await feed.begun.wait()
            while (chunk := await feed.chunks.get()) is not None:
                await into.put(chunk)
        except TimeoutError:
            log.warning("an agent does not push a log", job=opened.job_id, rank=opened.rank)
        finally:
            feed.unwanted.set()
            del self._feeds[opened.request_id]


class _Reading:
    """One StreamLogs call."""

    def __init__(self, relay: LogRelay, engine: Engine, request: job_pb2.StreamLogsRequest) -> None:
        self._relay = relay
        self._engine = engine
        self._request = request
        self._chunks: Chunks = asyncio.Queue(CHUNKS_QUEUED)
        self._cursors = {(c.rank, c.attempt, c.stream): c for c in request.cursors}

    async def chunks(self) -> AsyncIterator[job_pb2.StreamLogsResponse]:
        producer = asyncio.create_task(self._produce())
        try:
            while (chunk := await self._chunks.get()) is not None:
                yield chunk
                self._pass(chunk)
                self._chunks.task_done()
        finally:
            producer.cancel()
            await asyncio.gather(producer, return_exceptions=True)

    def _pass(self, chunk: job_pb2.StreamLogsResponse) -> None:
        """Note how far the reader is after this chunk."""
        at = chunk.cursor
        end = at.offset + len(chunk.data)
        after = job_pb2.LogCursor(rank=at.rank, attempt=at.attempt, stream=at.stream, offset=end)
        self._cursors[at.rank, at.attempt, at.stream] = after

    async def _produce(self) -> None:
        try:
            if self._request.follow:
                await self._follow()
                await self._chunks.join()  # the cursors are then where the reader is
            for rank, session in await self._engine.read(self._logs_of_ranks):
                await self._relay.pump(self._open(rank, follow=False), session, self._chunks)
        except Exception as error:  # noqa: BLE001  the reader must be told that no more comes
            log.warning("a log could not be read to its end", job=self._request.job_id, error=repr(error))
        await self._chunks.put(None)

    async def _follow(self) -> None:
        """Follow each rank on each node it is placed on, until the job has ended."""
        pumps: dict[tuple[int, str], asyncio.Task[None]] = {}
        try:
            with self._engine.watch(self._request.job_id) as changed:
                while await self._engine.read(self._unfinished):
                    for rank, session in await self._engine.read(self._logs_of_ranks):
                        if (rank, session.id) not in pumps:
                            opened = self._open(rank, follow=True)
                            pump = self._relay.pump(opened, session, self._chunks)
                            pumps[rank, session.id] = asyncio.create_task(pump)
                    await changed.wait()
                    changed.clear()
        finally:
            for pump_task in pumps.values():
                pump_task.cancel()
            await asyncio.gather(*pumps.values(), return_exceptions=True)

    def _unfinished(self, state: State) -> bool:
        job = state.jobs.get(self._request.job_id)
        return job is not None and job.state not in TERMINAL

    def _logs_of_ranks(self, state: State) -> list[tuple[int, Session]]:
        """Every connected node that holds logs of a rank that was asked for."""
        job = state.jobs.get(self._request.job_id)
        if job is None:
            return []
        ranks: Iterable[int] = self._request.ranks or range(job.spec.world_size)
        found = []
        for rank in ranks:
            for home in state.workers[job.id, rank].homes:
                node = state.nodes.get(home)
                session = self._engine.session_of(node.session) if node else None
                if session is not None:
                    found.append((rank, session))
        return found

    def _open(self, rank: int, *, follow: bool) -> agent_pb2.OpenLog:
        return agent_pb2.OpenLog(
            request_id=secrets.token_hex(8),
            job_id=self._request.job_id,
            rank=rank,
            attempt=self._request.attempt,
            follow=follow,
            cursors=[cursor for cursor in self._cursors.values() if cursor.rank == rank],
        )
