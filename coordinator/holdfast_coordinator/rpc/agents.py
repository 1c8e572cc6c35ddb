"""AgentService: one stream an agent. Heartbeats are handled here; everything else goes through the engine."""

import asyncio
import secrets
from collections.abc import AsyncIterator

import grpc
import structlog
from google.rpc import code_pb2

from holdfast.log_wire import Pushed
from holdfast.v1 import agent_pb2, agent_pb2_grpc
from holdfast_coordinator import codec
from holdfast_coordinator.core.events import StreamLost
from holdfast_coordinator.engine import Engine, NotLeadingError
from holdfast_coordinator.rpc.errors import abort, abort_refused
from holdfast_coordinator.rpc.logs import LogRelay
from holdfast_coordinator.session import Session

HELLO_WITHIN_S = 10.0

Context = grpc.aio.ServicerContext[agent_pb2.AgentMessage, agent_pb2.CoordinatorMessage]

log = structlog.get_logger(__name__)


class AgentService(agent_pb2_grpc.AgentServiceServicer):
    """The agents' end of the coordinator."""

    def __init__(self, engine: Engine, logs: LogRelay) -> None:
        self._engine = engine
        self._logs = logs
        self._ending: set[asyncio.Task[None]] = set()

    async def Connect(
        self, requests: AsyncIterator[agent_pb2.AgentMessage], context: Context
    ) -> AsyncIterator[agent_pb2.CoordinatorMessage]:
        """Serve one session, from its Hello until either side ends it."""
        engine = self._engine
        try:
            engine.check_leading()
        except NotLeadingError as error:
            await abort_refused(context, error)
        hello = await self._hello(requests, context)
        session = Session(secrets.token_hex(8))
        engine.open_session(session)
        engine.heard(hello.node)
        now_ns = engine.clock.now_ns()
        joined = codec.joined_from_proto(hello, session=session.id, at=now_ns // 1_000_000, at_ns=now_ns)
        await engine.post(joined)
        reader = asyncio.create_task(self._read(session, hello.node, requests))
        try:
            async for item in session.outgoing():
                yield codec.command_to_proto(item, epoch=engine.epoch)
        finally:
            # Not in this task, which gRPC may cancel once more while it ends.
            ending = asyncio.create_task(self._end(session, hello, reader))
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)
            await asyncio.shield(ending)
        await abort(context, code_pb2.ABORTED, session.closed_because, remedy="open a new session")

    async def _end(self, session: Session, hello: agent_pb2.Hello, reader: asyncio.Task[None]) -> None:
        """Report that a stream has ended, behind all that was read from it."""
        engine = self._engine
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)
        engine.drop_session(session)
        now = engine.clock.now()
        silent_ms = now - engine.heard_at(hello.node)
        await engine.post(StreamLost(now, hello.node, session.id, silent_ms, hello.workers_end_with_agent))

    async def PushLogs(  # type: ignore[override]  # its own deserializer, see rpc.logs
        self,
        requests: AsyncIterator[Pushed],
        context: grpc.aio.ServicerContext[Pushed, agent_pb2.PushLogsResponse],
    ) -> agent_pb2.PushLogsResponse:
        """Take what an agent read for a StreamLogs call."""
        if not await self._logs.take(requests):
            await abort(context, code_pb2.CANCELLED, "nobody waits for this log any more")
        return agent_pb2.PushLogsResponse()

    async def _hello(
        self, requests: AsyncIterator[agent_pb2.AgentMessage], context: Context
    ) -> agent_pb2.Hello:
        try:
            async with asyncio.timeout(HELLO_WITHIN_S):
                message = await anext(requests)
        except (TimeoutError, StopAsyncIteration):
            message = agent_pb2.AgentMessage()
        hello = message.hello
        if not hello.node or not hello.instance_id:
            await abort(
                context,
                code_pb2.INVALID_ARGUMENT,
                "the stream did not open with a Hello that names its node and instance",
                remedy=f"send one within {HELLO_WITHIN_S:g} s",
            )
        return hello

    async def _read(
        self, session: Session, node: str, requests: AsyncIterator[agent_pb2.AgentMessage]
    ) -> None:
        engine = self._engine
        try:
            async for message in requests:
                if message.epoch != engine.epoch:
                    log.info("dropped", node=node, reason=f"epoch {message.epoch} is not {engine.epoch}")
                elif message.HasField("heartbeat"):
                    engine.heard(node, message.heartbeat.workers)
                    if message.heartbeat.HasField("preloads"):
                        engine.note_preloads(node, session.id, message.heartbeat.preloads)
                else:
                    now = engine.clock.now()
                    engine.heard(node)
                    await engine.post(codec.event_from_proto(message, node=node, session=session.id, at=now))
            session.close("its agent ended the stream")
        except ValueError as error:
            session.close(str(error))
        except grpc.RpcError:
            session.close("its stream broke")
