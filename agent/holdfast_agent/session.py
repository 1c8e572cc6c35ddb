"""The stream to the coordinator: opened again and again for as long as the agent lives."""

import asyncio
import random
from collections.abc import Callable
from typing import TypeAlias

import grpc.aio
import structlog

from holdfast import wire
from holdfast.log_fields import carry
from holdfast.measures import Histogram
from holdfast.v1 import agent_pb2, agent_pb2_grpc

OUTBOX = 10_000
FIRST_BACKOFF_S = 0.05
LAST_BACKOFF_S = 2.0
WELCOME_WITHIN_S = 30.0
"""A new leader greets a thousand agents a second."""
SHORTEST_INTERVAL_S = 0.05

log = structlog.get_logger(__name__)

_Call: TypeAlias = "grpc.aio.StreamStreamCall[agent_pb2.AgentMessage, agent_pb2.CoordinatorMessage]"


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
        self._call: _Call | None = None
        self._served = False
        self._why = ""
        self.opened = 0
        """How many sessions there were."""
        self.is_open = False
        self.lag_s = Histogram()
        """How much later than due each heartbeat was made."""

    async def run(self) -> None:
        """Keep a session open until cancelled."""
        failures, told = 0, ""
        while True:
            # Anew each time: a name may lead to another coordinator since, and this one only stand by.
            async with wire.open_channel(self._target) as channel:
                why = await self._once(agent_pb2_grpc.AgentServiceStub(channel))
            self.is_open = False
            if self._served or why != told:
                log.info("session ended" if self._served else "no session", coordinator=self._target, why=why)
            failures, told = (0, "") if self._served else (failures + 1, why)
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
        self._served = False
        self._why = reason
        if self._call is not None:
            self._call.cancel()

    async def _once(self, stub: "agent_pb2_grpc.AgentServiceAsyncStub") -> str:
        """Live through one session; return why it ended."""
        self._epoch, self._served, self._why = 0, False, ""
        self._outbox = asyncio.Queue(OUTBOX)
        call = self._call = stub.Connect()
        sender: asyncio.Task[None] | None = None
        try:
            async with asyncio.timeout(WELCOME_WITHIN_S):
                await call.write(agent_pb2.AgentMessage(hello=self._hello()))
                message = await call.read()
            while isinstance(message, agent_pb2.CoordinatorMessage):  # and not EOF
                if sender is None and message.HasField("welcome"):
                    self._open(message.epoch)
                    sender = asyncio.create_task(self._send_all(call))
                self._set_pace(message)
                self._heard(message)
                message = await call.read()
        except TimeoutError:
            return f"no welcome within {WELCOME_WITHIN_S:g} s"
        except grpc.aio.AioRpcError as error:
            return error.details() or error.code().name
        except asyncio.CancelledError:
            if asyncio.current_task().cancelling():  # type: ignore[union-attr]
                raise
            return self._why  # `drop` cancelled the call, not us
        except asyncio.InvalidStateError:
            pass  # it ended while Hello was written
        finally:
            call.cancel()
            if sender is not None:
                sender.cancel()
                await asyncio.gather(sender, return_exceptions=True)
        return "the coordinator ended it"

    def _open(self, epoch: int) -> None:
        carry(epoch=epoch)
        log.info("session open", coordinator=self._target)
        self._epoch, self._served, self.is_open = epoch, True, True
        self.opened += 1

    async def _send_all(self, call: _Call) -> None:
        """Send what is queued at once, and a heartbeat every interval."""
        try:
            await self._send_and_beat(call)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            pass  # the stream is over; whoever reads it learns why
        except Exception as error:
            # A session that says nothing more must not stay open.
            log.exception("a message could not be sent")
            self.drop(f"a message could not be sent: {error}")

    async def _send_and_beat(self, call: _Call) -> None:
        loop = asyncio.get_running_loop()
        next_beat = loop.time() + self._interval_s
        while True:
            try:
                # Not wait_for: before Python 3.12 it may swallow a cancellation that comes together with an item.
                async with asyncio.timeout_at(next_beat):
                    message = await self._outbox.get()
            except TimeoutError:
                self.lag_s.observe(loop.time() - next_beat)
                message = agent_pb2.AgentMessage(epoch=self._epoch, heartbeat=self._beat())
                next_beat = loop.time() + self._interval_s
            await call.write(message)

    def _set_pace(self, message: agent_pb2.CoordinatorMessage) -> None:
        if message.HasField("welcome"):
            pace = message.welcome.pace
        elif message.HasField("pace"):
            pace = message.pace
        else:
            return
        self._interval_s = max(SHORTEST_INTERVAL_S, pace.heartbeat_interval.ToMilliseconds() / 1000)
