"""The composition root of a standing agent; `holdfast agent` calls it."""

import asyncio

import structlog

from holdfast_agent.agent import Agent, AgentConfig

log = structlog.get_logger(__name__)


async def serve(config: AgentConfig, *, stop: asyncio.Event) -> None:
    """Serve until `stop` is set; workers go on (P4). Raises StateDirError."""
    agent = Agent(config)
    running = asyncio.create_task(agent.run())
    stopped = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({running, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            await running
    finally:
        stopped.cancel()
        running.cancel()
        await asyncio.gather(running, stopped, return_exceptions=True)
        left = len(agent.workers())
        await agent.stop(workers=False)
        log.info("the agent ends; its workers go on", workers=left)
