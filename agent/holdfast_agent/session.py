"""The stream to the coordinator: opened again and again for as long as the agent lives."""

import asyncio
import random
from collections.abc import Callable

import grpc.aio
import structlog

from holdfast import wire
from holdfast.v1 import agent_pb2, agent_pb2_grpc

OUTBOX = 10_000
FIRST_BACKOFF_S = 0.05
LAST_BACKOFF_S = 2.0

log = structlog.get_logger(__name__)


class Session:
    """One stream at a time. What the callbacks do must not block.

    `hello` makes the message that opens a session; `heard` gets every message of the coordinator; `lost` is
    told when a stream is over; `beat` makes a heartbeat.
    """

    def __init__(
        self,
        target: str,
        *,
        hello: Callable[[], agent_pb2.Hello],
        heard: Callable[[agent_pb2.CoordinatorMessage], None],
        lost: Callable[[], None],
        beat: Callable[[], agent_pb2.Heartbeat],
    ) -> None:
        self._target = target
        self._hello = hello
        self._heard = heard
        self._lost = lost
        self._beat = beat
        self._epoch = 0
        self._interval_s = 1.0
        self._outbox: asyncio.Queue[agent_pb2.AgentMessage] = asyncio.Queue(OUTBOX)
        self._call: grpc.aio.StreamStreamCall[agent_pb2.AgentMessage, agent_pb2.CoordinatorMessage] | None = (
            None
        )

    async def run(self) -> None:
        """Keep a session open until cancelled."""
        failures = 0
        async with wire.open_channel(self._target) as channel:
            stub = agent_pb2_grpc.AgentServiceStub(channel)
            while True:
                self._epoch = 0
                try:
                    await self._once(stub)
                except grpc.aio.AioRpcError as error:
                    if self._epoch or not failures:
                        log.info("session ended", coordinator=self._target, why=error.details())
                failures = 0 if self._epoch else failures + 1
                self._lost()
                backoff = min(LAST_BACKOFF_S, FIRST_BACKOFF_S * 2**failures)
                await asyncio.sleep(backoff * random.uniform(0.5, 1.0))

    def send(self, message: agent_pb2.AgentMessage) -> None:
        """Queue a message for the session that is open; what is lost with it is the core's to repeat."""
        message.epoch = self._epoch
        try:
            self._outbox.put_nowait(message)
        except asyncio.QueueFull:
            self.drop("the coordinator does not read")

    def drop(self, reason: str) -> None:
        """End the session that is open; another one is opened."""
        log.warning("session dropped", coordinator=self._target, why=reason)
        if self._call is not None:
            self._call.cancel()

    async def _once(self, stub: "agent_pb2_grpc.AgentServiceAsyncStub") -> None:
        self._outbox = asyncio.Queue(OUTBOX)
        call = self._call = stub.Connect()
        sender: asyncio.Task[None] | None = None
        try:
            await call.write(agent_pb2.AgentMessage(hello=self._hello()))
            async for message in call:
                if message.HasField("welcome"):
                    self._set_pace(message.welcome.pace)
                    if not self._epoch:
                        log.info("session open", coordinator=self._target, epoch=message.epoch)
                        self._epoch = message.epoch
                        sender = asyncio.create_task(self._send_all(call))
                elif message.HasField("pace"):
                    self._set_pace(message.pace)
                self._heard(message)
        except asyncio.CancelledError:
            if asyncio.current_task().cancelling():  # type: ignore[union-attr]
                raise
            # `drop` cancelled the call, not us.
        finally:
            call.cancel()
            if sender is not None:
                sender.cancel()
                await asyncio.gather(sender, return_exceptions=True)

    async def _send_all(
        self, call: "grpc.aio.StreamStreamCall[agent_pb2.AgentMessage, agent_pb2.CoordinatorMessage]"
    ) -> None:
        """Send what is queued at once, and a heartbeat every interval."""
        loop = asyncio.get_running_loop()
        next_beat = loop.time() + self._interval_s
        while True:
            try:
                message = await asyncio.wait_for(self._outbox.get(), max(0.0, next_beat - loop.time()))
            except TimeoutError:
                message = agent_pb2.AgentMessage(epoch=self._epoch, heartbeat=self._beat())
                next_beat = loop.time() + self._interval_s
            await call.write(message)

    def _set_pace(self, pace: agent_pb2.Pace) -> None:
        self._interval_s = max(0.05, pace.heartbeat_interval.ToMilliseconds() / 1000)
