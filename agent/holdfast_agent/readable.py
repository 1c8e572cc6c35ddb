"""Waiting for a descriptor."""

import asyncio


async def readable(fd: int) -> None:
    """Wait until there is something to read from `fd`, or, of a pidfd, until its process has ended."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()

    def on_ready() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(fd, on_ready)
    try:
        await ready
    finally:
        loop.remove_reader(fd)
