"""The agents' end of the coordinator, where a real stream would need luck."""

import asyncio

from holdfast.v1 import agent_pb2
from holdfast_coordinator.clock import Clock
from holdfast_coordinator.core.model import NodeState
from holdfast_coordinator.core.state import Settings
from holdfast_coordinator.engine import Engine
from holdfast_coordinator.rpc.agents import AgentService
from holdfast_coordinator.rpc.logs import LogRelay
from holdfast_coordinator.store.memory import MemoryStore

PATIENCE = 10


async def test_a_stream_that_is_cancelled_while_it_ends_has_ended_all_the_same():
    """Else its node would seem connected until its lease runs out."""
    engine = Engine(MemoryStore(), Settings(lost_after_ms=600_000, suspect_after_ms=300_000), Clock())
    loop = asyncio.create_task(engine.run())
    welcome, ending, go_on = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def requests():
        message = agent_pb2.AgentMessage()
        message.hello.node, message.hello.instance_id, message.hello.capacity.slots = "a", "i1", 1
        yield message
        try:
            await asyncio.Event().wait()
        finally:
            ending.set()
            await go_on.wait()

    async def serve():
        async for _ in AgentService(engine, LogRelay(engine)).Connect(requests(), None):
            welcome.set()

    async with asyncio.timeout(PATIENCE):
        await engine.wait_leading()
        serving = asyncio.create_task(serve())
        await welcome.wait()
        serving.cancel()
        await ending.wait()
        serving.cancel()  # as gRPC does when the connection goes while the session is being closed
        await asyncio.gather(serving, return_exceptions=True)
        go_on.set()
        while await engine.read(lambda state: state.nodes["a"].state) is not NodeState.SUSPECT:
            await asyncio.sleep(0)
    loop.cancel()
    await asyncio.gather(loop, return_exceptions=True)
