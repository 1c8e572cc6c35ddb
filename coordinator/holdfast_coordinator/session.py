"""One life of an agent's stream, as the engine sees it: a bounded queue of what is to be sent, in order."""

import asyncio
from collections.abc import AsyncIterator

from holdfast_coordinator.codec import Outgoing

OUTBOX = 10_000


class Session:
    """What is to be sent to an agent, until either side ends it."""

    def __init__(self, session_id: str) -> None:
        self.id = session_id
        self.closed_because = ""
        self._outbox: asyncio.Queue[Outgoing | None] = asyncio.Queue(OUTBOX)

    def send(self, item: Outgoing) -> None:
        """Queue it. A session whose agent doesn't read is closed; the next one makes up for what is lost."""
        if self.closed_because:
            return
        if self._outbox.qsize() >= OUTBOX - 1:
            self.close("its agent does not read what it is sent")
        else:
            self._outbox.put_nowait(item)

    def close(self, reason: str) -> None:
        """End it; what is queued is still sent."""
        if not self.closed_because:
            self.closed_because = reason
            self._outbox.put_nowait(None)

    async def outgoing(self) -> AsyncIterator[Outgoing]:
        """What is to be sent, until the session is closed."""
        while (item := await self._outbox.get()) is not None:
            yield item
