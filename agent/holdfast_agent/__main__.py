"""The composition root of a standing agent; `holdfast agent` calls it."""

import asyncio
from typing import TYPE_CHECKING

import structlog

from holdfast.allocator import keep_large_blocks
from holdfast.log_fields import carry
from holdfast_agent.agent import Agent, AgentConfig
from holdfast_agent.notices import Notice

if TYPE_CHECKING:
    from holdfast.exposition import MetricsServer

log = structlog.get_logger(__name__)


async def serve(
    config: AgentConfig,
    *,
    stop: asyncio.Event,
    at_once: asyncio.Event | None = None,
    drain_s: float | None = None,
    metrics: str = "",
) -> None:
    """Serve until `stop` is set; workers go on (P4), but those of the foreground. Raises StateDirError, AddressError.

    With `drain_s` they do not: the node is drained first, for so many seconds at most, unless `at_once` is set, and
    what still runs then is ended. `metrics` is where Prometheus finds its numbers, host:port or a port of loopback;
    empty: nowhere.
    """
    carry(node=config.name)
    keep_large_blocks()
    agent = Agent(config)
    running = asyncio.create_task(agent.run())
    stopped = asyncio.create_task(stop.wait())
    server = None
    try:
        if metrics:
            server = await _serve_metrics(agent, metrics)
        await asyncio.wait({running, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if stopped.done() and drain_s is not None:
            await _drained(agent, drain_s, running, at_once or asyncio.Event())
        if running.done():
            await running
    finally:
        stopped.cancel()
        running.cancel()
        await asyncio.gather(running, stopped, return_exceptions=True)
        if server is not None:
            await server.stop()
        left = len(agent.workers())
        await agent.stop(workers=drain_s is not None)
        with_them = drain_s is not None or config.foreground
        ends = "the agent ends with its workers" if with_them else "the agent ends; its workers go on"
        log.info(ends, workers=left)


async def _serve_metrics(agent: Agent, address: str) -> "MetricsServer":
    from holdfast.exposition import MetricsServer
    from holdfast_agent.metrics import Exporter

    server = MetricsServer(Exporter(agent).collect)
    log.info("metrics", address=await server.start(address))
    return server


async def _drained(
    agent: Agent, seconds: float, running: "asyncio.Task[None]", at_once: asyncio.Event
) -> None:
    notice = Notice("its agent was told to end", asyncio.get_running_loop().time() + seconds)
    tasks = [running, asyncio.create_task(agent.drained(notice)), asyncio.create_task(at_once.wait())]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks[1:]:
        task.cancel()
    await asyncio.gather(*tasks[1:], return_exceptions=True)
