"""What the blocking client is made of: calls and iterators of the asyncio client, run in a thread's event loop.

Safe to use from several threads. An iterator is one thread's at a time.
"""

import asyncio
import os
import threading
import warnings
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Generator
from concurrent.futures import CancelledError, Future
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from holdfast import wire
from holdfast.client import Client as AsyncClient
from holdfast.loop_thread import SHARED, ForkedError

T = TypeVar("T")

_END: Any = object()


class BlockingCalls:
    """An asyncio client, and the loop that it lives in."""

    _open = False  # also of one that could not be made

    def __init__(self, target: str = wire.DEFAULT_TARGET) -> None:
        self.target = target
        self._pid = os.getpid()
        self._lock = threading.RLock()  # the collector may close an iterator wherever it runs
        self._tasks: set[asyncio.Task[Any]] = set()
        try:
            self._loop = SHARED.hold()
        except ForkedError:
            raise _forked() from None
        self._open = True
        self._client: AsyncClient = asyncio.run_coroutine_threadsafe(_make(target), self._loop).result()

    def __enter__(self) -> Self:
        """Use it as a context manager, so that the connection is closed."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connection."""
        self.close()

    def __del__(self) -> None:
        """Close what nobody closed, and say so where such warnings are shown."""
        if self._open and self._pid == os.getpid():
            warnings.warn(
                f"a client of {self.target} was not closed", ResourceWarning, source=self, stacklevel=2
            )
            self._begin_close()
            SHARED.let_go(wait=False)

    def close(self) -> None:
        """Close the connection. Calls that other threads wait for end with ClientClosed."""
        if self._pid != os.getpid():
            return  # the connection is the parent's
        closing = self._begin_close()
        if closing is not None:
            try:
                closing.result()
            finally:
                SHARED.let_go()

    def _begin_close(self) -> "Future[None] | None":
        with self._lock:
            if not self._usable():
                return None
            self._open = False
            return asyncio.run_coroutine_threadsafe(self._close(), self._loop)

    async def _close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._client.close()

    def _run(self, call: Coroutine[Any, Any, T]) -> T:
        """Have the loop do something, and wait for it."""
        future = self._submit(call)
        try:
            return future.result()
        except CancelledError:
            raise self._closed() from None
        finally:
            future.cancel()  # whoever is interrupted wants no answer

    def _iterate(self, items: AsyncIterator[T]) -> Generator[T, None, None]:
        """Give items as they come. To close it, or to drop it, ends the call."""
        reading = _Reading(items)
        try:
            while (item := self._run(reading.next())) is not _END:
                yield item
        finally:
            self._abandon(reading)

    def _abandon(self, reading: "_Reading[Any]") -> None:
        # Nobody waits: the collector may be the one who closes an iterator, in any thread, the loop's too.
        if self._pid == os.getpid() and self._usable():
            self._submit(reading.close())

    def _submit(self, call: Coroutine[Any, Any, T]) -> "Future[T]":
        if self._pid != os.getpid():
            call.close()
            raise _forked()
        with self._lock:
            if self._usable():
                return asyncio.run_coroutine_threadsafe(self._kept(call), self._loop)
        call.close()
        raise self._closed()

    async def _kept(self, call: Coroutine[Any, Any, T]) -> T:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            return await call
        finally:
            self._tasks.discard(task)

    def _usable(self) -> bool:
        return self._open and not self._loop.is_closed()  # it is closed when the interpreter exits

    def _closed(self) -> wire.ClientClosed:
        return wire.ClientClosed(f"the client of {self.target} is closed", "make another")


class _Reading(Generic[T]):
    """An asynchronous iterator that is read an item at a time, and can be closed while it is waited for."""

    def __init__(self, items: AsyncIterator[T]) -> None:
        self._items = items
        self._task: asyncio.Task[Any] | None = None

    async def next(self) -> T:
        self._task = asyncio.current_task()
        return await anext(self._items, _END)

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        assert isinstance(self._items, AsyncGenerator)
        await self._items.aclose()


async def _make(target: str) -> AsyncClient:
    return AsyncClient(target)  # its channel belongs to the loop that it is made in


def _forked() -> wire.ClientClosed:
    return wire.ClientClosed(
        "this process was forked after a client was made, and gRPC does not work in it",
        "start processes another way (multiprocessing: spawn or forkserver), or fork before the first client",
    )
