"""Leadership of one of several coordinators: asks the database, and core/leadership.py what follows from the answer."""

import asyncio
import os
import secrets
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import structlog

from holdfast_coordinator.core.leadership import (
    Granted,
    Heard,
    Leadership,
    Refused,
    Role,
    TimePassed,
    Unanswered,
    hear,
)
from holdfast_coordinator.store.api import DeposedError, StoreError, StoreTooNewError
from holdfast_coordinator.store.postgres import LeaseAnswer, PostgresStore

GIVE_BACK_WITHIN_S = 1.0

log = structlog.get_logger(__name__)


def new_holder() -> str:
    """A name that no coordinator had before, and that says to people which one it is."""
    return f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"


class Lease:
    """The lease of one life of a coordinator. It leads once at most: whoever was deposed begins anew as a process."""

    def __init__(self, store: PostgresStore, lease_ms: int) -> None:
        self._store = store
        self._lease_ms = lease_ms
        self._known = Leadership(lease_ms)
        self._thread = ThreadPoolExecutor(1, "lease")

    def why_not(self) -> str:
        """Why this coordinator does not lead at this moment; empty: it does."""
        now_ms = _now_ms()
        return "" if self._known.leads_at(now_ms) else hear(self._known, TimePassed(now_ms)).why

    async def take(self, standing_by: Callable[[str], None]) -> None:
        """Wait until the lease is this coordinator's; `standing_by` is told why it is not yet.

        Raises StoreTooNewError.
        """
        known, said = self._known, ""
        while known.role is Role.STANDBY:
            await asyncio.sleep((known.ask_ms - _now_ms()) / 1000)
            known = await self._ask(self._store.take)
            if known.role is Role.STANDBY and known.why != said:
                said = known.why
                log.info("standing by", why=said)
                standing_by(said)

    async def keep(self) -> None:
        """Have it renewed for as long as that works. Raises DeposedError when it does not, in time to stop."""
        while self._known.role is Role.LEADER:
            await asyncio.sleep((self._known.ask_ms - _now_ms()) / 1000)
            with suppress(TimeoutError):
                async with asyncio.timeout((self._known.until_ms - _now_ms()) / 1000):
                    await self._ask(self._store.renew)
            self._hear(TimePassed(_now_ms()))
        self._store.abandon()
        raise DeposedError(f"this coordinator leads no longer: {self._known.why}")

    async def close(self) -> None:
        """Give it back, if it is held, so that another need not wait until it has run out."""
        held, self._known = not self.why_not(), Leadership(self._lease_ms)
        if held:
            with suppress(StoreError, TimeoutError):
                async with asyncio.timeout(GIVE_BACK_WITHIN_S):
                    await asyncio.get_running_loop().run_in_executor(self._thread, self._store.give_back)
        self._store.abandon()
        self._thread.shutdown(wait=False)

    async def _ask(self, call: Callable[[int], LeaseAnswer]) -> Leadership:
        asked_ms = _now_ms()
        try:
            answer = await asyncio.get_running_loop().run_in_executor(self._thread, call, self._lease_ms)
        except StoreTooNewError:
            raise
        except StoreError as error:
            return self._hear(Unanswered(_now_ms(), str(error)))
        if answer.granted:
            return self._hear(Granted(_now_ms(), asked_ms))
        return self._hear(Refused(_now_ms(), answer.holder, answer.left_ms))

    def _hear(self, heard: Heard) -> Leadership:
        self._known = hear(self._known, heard)
        return self._known


def _now_ms() -> int:
    return time.monotonic_ns() // 1_000_000
