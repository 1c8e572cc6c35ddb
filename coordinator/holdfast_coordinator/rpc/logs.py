"""Logs: a StreamLogs call asks agents over their streams, and they answer on RPCs of their own.

An agent is told to open a log (OpenLog) and answers with a PushLogs stream that names the request. Between the two
is a small bounded queue: a reader that is slow slows the agent's reading down and nothing else. What passes through
is not looked into.

Following goes on until the job has ended. Then whatever the followers had not read yet is read once more from
where each of them was: a worker's log is complete on disk before its exit is reported, so nothing is missed. An agent
that went away meanwhile is given a moment to come back. What lies on a node whose agent does not is named, so that the
reader can look for it in the archive.
"""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from functools import partial
from operator import methodcaller
from typing import Any

import grpc
import structlog

from holdfast.allocator import give_back
from holdfast.log_cursors import Cursors
from holdfast.log_wire import AnyChunk, Pushed
from holdfast.v1 import agent_pb2, job_pb2
from holdfast_coordinator.changes import Topic
from holdfast_coordinator.core.model import TERMINAL, NodeState
from holdfast_coordinator.core.state import State
from holdfast_coordinator.engine import Engine
from holdfast_coordinator.rpc.tasks import first_of
from holdfast_coordinator.session import Session

ANSWER_WITHIN_S = 30.0
"""An agent that has not begun to push by then is passed over: it hangs, for a loaded machine is not so slow."""
BACK_WITHIN_S = 10.0
"""And one that went away while its log was read, unless its node is lost before."""
GONE_WITHIN_S = 1.0
"""Its session ends with what it pushed, or soon after it; otherwise it was not the agent that went away."""
CHUNKS_QUEUED = 1
"""They are large."""

Chunks = asyncio.Queue[AnyChunk | None]

log = structlog.get_logger(__name__)


class _Feed:
    """What one agent pushes for one request."""

    def __init__(self, into: Chunks) -> None:
        self._into = into
        self.begun = asyncio.Event()
        self.over = asyncio.Event()
        self.unwanted = asyncio.Event()
        self.complete = False

    async def receive(self, first: Pushed, rest: AsyncIterator[Pushed]) -> None:
        """Queue what arrives."""
        if first.chunk is not None:
            await self._into.put(first.chunk)
        async for message in rest:
            if message.chunk is not None:
                await self._into.put(message.chunk)
        self.complete = True


class LogRelay:
    """Joins StreamLogs calls to the PushLogs streams that answer them."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._feeds: dict[str, _Feed] = {}

    async def take(self, requests: AsyncIterator[Pushed]) -> bool:
        """Serve a PushLogs stream until it ends or its reader is gone. False: nobody waits for it."""
        try:
            first = await anext(requests)
            feed = self._feeds[first.request_id]
        except (StopAsyncIteration, KeyError):
            return False
        feed.begun.set()
        try:
            await first_of(feed.receive(first, requests), feed.unwanted.wait())
        finally:
            feed.over.set()
        return True

    def read(self, request: job_pb2.StreamLogsRequest) -> AsyncGenerator[AnyChunk, None]:
        """Yield what the call asked for of a job that is there. Raises NotLeadingError, WatchOverError."""
        return _Reading(self, self._engine, request).chunks()

    async def pump(self, opened: agent_pb2.OpenLog, session: Session, into: Chunks) -> bool:
        """Ask an agent for a log and move what it pushes into a queue. False when it does not push all of it."""
        feed = _Feed(into)
        self._feeds[opened.request_id] = feed
        try:
            session.send(opened)
            async with asyncio.timeout(ANSWER_WITHIN_S):
                await feed.begun.wait()
            await feed.over.wait()
        except TimeoutError:
            log.warning("an agent does not push a log", job=opened.job_id, rank=opened.rank)
        finally:
            feed.unwanted.set()
            del self._feeds[opened.request_id]
            give_back()
        return feed.complete


def pass_as_they_are(
    server: grpc.aio.Server, push_logs: Callable[..., Any], stream_logs: Callable[..., Any]
) -> None:
    """Have these serve the two calls whose chunks are not parsed, in the place of what was generated for them."""
    push: Any = grpc.stream_unary_rpc_method_handler(
        push_logs, Pushed.FromString, agent_pb2.PushLogsResponse.SerializeToString
    )
    stream: Any = grpc.unary_stream_rpc_method_handler(
        stream_logs, job_pb2.StreamLogsRequest.FromString, methodcaller("SerializeToString")
    )
    agents = agent_pb2.DESCRIPTOR.services_by_name["AgentService"].full_name
    jobs = job_pb2.DESCRIPTOR.services_by_name["JobService"].full_name
    server.add_registered_method_handlers(agents, {"PushLogs": push})
    server.add_registered_method_handlers(jobs, {"StreamLogs": stream})


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
    lost: bool
    """Its agent is not expected back."""


class _Reading:
    """One StreamLogs call."""

    def __init__(self, relay: LogRelay, engine: Engine, request: job_pb2.StreamLogsRequest) -> None:
        self._relay = relay
        self._engine = engine
        self._request = request
        self._chunks: Chunks = asyncio.Queue(CHUNKS_QUEUED)
        self._cursors = Cursors(request.cursors)

    async def chunks(self) -> AsyncGenerator[AnyChunk, None]:
        """See `LogRelay.read`: who is told that it broke goes on where he was, who is told of its end has all."""
        producer = asyncio.create_task(self._produce())
        try:
            while (chunk := await self._chunks.get()) is not None:
                # An agent that was restarted is asked anew while what the one before pushed is still on its way.
                if chunk.HasField("away") or self._cursors.take(chunk):
                    yield chunk
                self._chunks.task_done()
            await producer
        finally:
            producer.cancel()
            await asyncio.gather(producer, return_exceptions=True)

    async def _produce(self) -> None:
        try:
            if self._request.follow:
                await self._follow()
                await self._chunks.join()  # the cursors are then where the reader is
            homes = self._wanted(await self._engine.read(self._homes), follow=False)
            away = [
                home for home in homes if home.session is None and (home.lost or not self._request.follow)
            ]
            for (
                home
            ) in away:  # first of all: what the archive has of them comes before what was written later
                await self._tell_away(home, "its agent is not connected")
            for home in homes:
                if home not in away:
                    await self._read_rest(home)
        finally:
            await self._chunks.put(None)

    async def _read_rest(self, home: _Home) -> None:
        """Read what a node has of a rank; where its agent goes away meanwhile, by the one that comes back."""
        session = home.session or await self._next_session(home.node, None)
        reason = "its agent is not connected"
        while session is not None:
            if await self._relay.pump(self._open(home, follow=False), session, self._chunks):
                return
            reason = "its agent did not send all of it"
            await self._chunks.join()
            session = await self._next_session(home.node, session)
        await self._tell_away(home, reason)

    async def _next_session(self, name: str, before: Session | None) -> Session | None:
        """The session of a node after this one; None when none comes. Raises WatchOverError."""
        within = GONE_WITHIN_S if before is not None else BACK_WITHIN_S
        with contextlib.suppress(TimeoutError), self._engine.changes.watch(Topic.NODES) as watch:
            async with asyncio.timeout(within) as limit:
                while True:
                    watch.take()
                    session, lost = await self._engine.read(partial(self._session_of, name))
                    if lost or (session is not None and session is not before):
                        return session
                    if session is None and before is not None:
                        before = None
                        limit.reschedule(asyncio.get_running_loop().time() + BACK_WITHIN_S)
                    await watch.changed()
        return None

    def _session_of(self, name: str, state: State) -> tuple[Session | None, bool]:
        """The session of a node, and whether none is expected."""
        node = state.nodes.get(name)
        if node is None:
            return None, True
        return self._engine.session_of(node.session), node.state is NodeState.LOST

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
                session, lost = self._session_of(name, state)
                attempt = worker.attempt if worker.node == name else 0
                newest = worker.attempt if worker.node else 0
                found.append(_Home(rank, name, session, attempt, newest, lost))
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
