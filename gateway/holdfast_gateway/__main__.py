"""The composition root of a standing gateway; `holdfast gateway` calls it."""

import asyncio
from collections.abc import Callable

from holdfast_gateway.config import GatewayConfig
from holdfast_gateway.server import Gateway


async def serve(
    config: GatewayConfig, *, stop: asyncio.Event, ready: Callable[[str], None] | None = None
) -> None:
    """Serve until `stop` is set. Raises ListenError."""
    gateway = Gateway(config)
    try:
        url = await gateway.start()
        if ready is not None:
            ready(url)
        stopped = asyncio.create_task(stop.wait())
        failed = asyncio.create_task(gateway.wait())
        await asyncio.wait({stopped, failed}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if failed.done():
            await failed
        failed.cancel()
    finally:
        await gateway.stop()
