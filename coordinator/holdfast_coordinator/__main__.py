"""The composition root of a standing coordinator; `holdfast coordinator` calls it."""

import asyncio
import sys
from collections.abc import Callable

import structlog

from holdfast_coordinator.app import Coordinator, CoordinatorConfig


async def serve(
    config: CoordinatorConfig, *, stop: asyncio.Event, ready: Callable[[str], None] | None = None
) -> None:
    """Serve until `stop` is set. Raises ListenError, StoreError, and whatever ends the engine."""
    coordinator = Coordinator(config)
    try:
        target = await coordinator.start()
        if ready is not None:
            ready(target)
        stopped = asyncio.create_task(stop.wait())
        failed = asyncio.create_task(coordinator.wait())
        await asyncio.wait({stopped, failed}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if failed.done():
            await failed
        failed.cancel()
    finally:
        await coordinator.stop()


def set_up_logs() -> None:
    """Log to stderr: for people on a terminal, JSON otherwise."""
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer() if sys.stderr.isatty() else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            renderer,
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
