"""Logs: a StreamLogs call asks agents over their streams, and they answer on RPCs of their own.

An agent is told to open a log (OpenLog) and answers with a PushLogs stream that names the request. Between the two
is a small bounded queue: a reader that is slow slows the agent's reading down and nothing else.

Following goes on until the job has ended. Then whatever the followers had not read yet is read once more from
where each of them was: a worker's log is complete on disk before its exit is reported, so nothing is missed. What lies
on a node whose agent is not connected is named, so that the reader can look for it in the archive.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass

import structlog

from holdfast.log_cursors import Cursors
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
        self.complete = False

    async def receive(
        self, first: agent_pb2.PushLogsRequest, rest: AsyncIterator[agent_pb2.PushLogsRequest]
    ) -> None:
        """Queue what arrives, then None."""
        try:
            if first.HasField("chunk"):
                await self.chunks.put(first.chunk)
            async for message in rest:
                await self.chunks.put(message.chunk)
            self.complete = True
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

    async def pump(self, opened: agent_pb2.OpenLog, session: Session, into: Chunks) -> bool:
        """Ask an agent for a log and move what it pushes into a queue. False when it does not push all of it."""
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
        return feed.complete


@dataclass(frozen=True, slots=True)
class _Home:
    """A node that holds logs of a rank."""

    rank: int
    node: str
    session: Session | None
    """None: its agent is not connected."""
    attempt: int
    """The newest of the rank, if this is the node that it is on; otherwise 0."""
    newest: int
    """The newest of the rank, wherever it is; 0: nobody knows where."""


class _Reading:
    """One StreamLogs call."""

    def __init__(self, relay: LogRelay, engine: Engine, request: job_pb2.StreamLogsRequest) -> None:
        self._relay = relay
        self._engine = engine
        self._request = request
        self._chunks: Chunks = asyncio.Queue(CHUNKS_QUEUED)
        self._cursors = Cursors(request.cursors)

    async def chunks(self) -> AsyncIterator[job_pb2.StreamLogsResponse]:
        producer = asyncio.create_task(self._produce())
        try:
            while (chunk := await self._chunks.get()) is not None:
                # An agent that was restarted is asked anew while what the one before pushed is still on its way.
                if chunk.HasField("away") or self._cursors.take(chunk):
                    yield chunk
                self._chunks.task_done()
        finally:
            producer.cancel()
            await asyncio.gather(producer, return_exceptions=True)

    async def _produce(self) -> None:
        try:
            if self._request.follow:
                await self._follow()
                await self._chunks.join()  # the cursors are then where the reader is
            homes = self._wanted(await self._engine.read(self._homes), follow=False)
            for (
                home
            ) in homes:  # first of all: what the archive has of them comes before what was written later
                if home.session is None:
                    await self._tell_away(home, "its agent is not connected")
            for home in homes:
                if home.session is not None:
                    pushed = await self._relay.pump(
                        self._open(home, follow=False), home.session, self._chunks
                    )
                    if not pushed:
                        await self._tell_away(home, "its agent did not send all of it")
        except Exception as error:  # noqa: BLE001  the reader must be told that no more comes
            log.warning("a log could not be read to its end", job=self._request.job_id, error=repr(error))
        await self._chunks.put(None)

    async def _follow(self) -> None:
        """Follow each rank on each node it is placed on, until the job has ended."""
        pumps: dict[tuple[int, str], asyncio.Task[bool]] = {}
        try:
            with self._engine.watch(self._request.job_id) as changed:
                while await self._engine.read(self._unfinished):
                    for home in self._wanted(await self._engine.read(self._homes), follow=True):
                        if home.session is not None and (home.rank, home.session.id) not in pumps:
                            pump = self._relay.pump(self._open(home, follow=True), home.session, self._chunks)
                            pumps[home.rank, home.session.id] = asyncio.create_task(pump)
                    await changed.wait()
                    changed.clear()
        finally:
            for pump_task in pumps.values():
                pump_task.cancel()
            await asyncio.gather(*pumps.values(), return_exceptions=True)

    def _unfinished(self, state: State) -> bool:
        job = state.jobs.get(self._request.job_id)
        return job is not None and job.state not in TERMINAL

    def _homes(self, state: State) -> list[_Home]:
        """Every node that holds logs of a rank that was asked for."""
        job = state.jobs.get(self._request.job_id)
        if job is None:
            return []
        ranks: Iterable[int] = self._request.ranks or range(job.spec.world_size)
        found = []
        for rank in ranks:
            worker = state.workers[job.id, rank]
            for name in worker.homes:
                node = state.nodes.get(name)
                session = self._engine.session_of(node.session) if node else None
                attempt = worker.attempt if worker.node == name else 0
                newest = worker.attempt if worker.node else 0
                found.append(_Home(rank, name, session, attempt, newest))
        return found

    def _wanted(self, homes: list[_Home], *, follow: bool) -> list[_Home]:
        """Those to read from: of a tail, what was written before the newest attempt elsewhere is no part."""
        if follow or not self._request.HasField("tail") or self._request.attempt:
            return homes
        return [
            home
            for home in homes
            if home.attempt or not home.newest or self._cursors.first_attempt(home.rank)
        ]

    async def _tell_away(self, home: _Home, reason: str) -> None:
        away = job_pb2.LogsAway(rank=home.rank, node=home.node, reason=reason)
        await self._chunks.put(job_pb2.StreamLogsResponse(away=away))

    def _open(self, home: _Home, *, follow: bool) -> agent_pb2.OpenLog:
        asked, rank = self._request, home.rank
        opened = agent_pb2.OpenLog(
            request_id=secrets.token_hex(8),
            job_id=asked.job_id,
            rank=rank,
            attempt=asked.attempt,
            follow=follow,
            cursors=self._cursors.of(rank),
            since=asked.since if asked.HasField("since") else None,
        )
        if asked.HasField("tail"):
            # The last lines are taken once, where the rank is; from there on everything counts, wherever it goes.
            if begun := self._cursors.first_attempt(rank):
                opened.first_attempt = begun
            elif home.attempt or not home.newest or asked.attempt:
                opened.tail = asked.tail
            else:
                opened.first_attempt = home.newest + 1
        return opened
