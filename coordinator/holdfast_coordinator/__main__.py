"""The composition root of a standing coordinator; `holdfast coordinator` calls it."""

import asyncio
import gc
from collections.abc import Callable

from holdfast.allocator import keep_large_blocks
from holdfast_coordinator.app import Coordinator, CoordinatorConfig


async def serve(
    config: CoordinatorConfig, *, stop: asyncio.Event, ready: Callable[[str], None] | None = None
) -> None:
    """Serve until `stop` is set. Raises ListenError, StoreError, and whatever ends the engine."""
    keep_large_blocks()
    coordinator = Coordinator(config)
    try:
        target = await coordinator.start()
        gc.freeze()  # this process is the coordinator's alone: what is imported by now is never garbage
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
