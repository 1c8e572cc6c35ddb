"""Watches that outlive connections: each goes on where it was when the coordinator is back."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Protocol, TypeVar

import grpc

from holdfast.log_reading import RECONNECT_S
from holdfast.v1 import job_pb2, node_pb2

Change = TypeVar("Change", job_pb2.WatchJobsResponse, node_pb2.WatchNodesResponse)
T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")


class _Client(Protocol):
    def raise_unless_away(self, error: grpc.aio.AioRpcError) -> None: ...


class _Call(Protocol[T_co]):
    def __aiter__(self) -> AsyncIterator[T_co]: ...

    def cancel(self) -> bool: ...


async def follow(client: _Client, begin: Callable[[], _Call[T]]) -> AsyncIterator[T]:
    """Yield what a stream says, to its end; begin it again whenever the coordinator was away."""
    while True:
        call = begin()
        try:
            async for item in call:
                yield item
        except grpc.aio.AioRpcError as error:
            client.raise_unless_away(error)
        else:
            return
        finally:
            call.cancel()  # whoever leaves early leaves nothing open
        await asyncio.sleep(RECONNECT_S)


async def keep_up(
    client: _Client, begin: Callable[[], _Call[Change]], what: Callable[[Change], tuple[str, bytes]]
) -> AsyncIterator[Change]:
    """Yield all that there is, the mark, and every change, each once, over any number of connections.

    `what` gives the name of what a change shows, and what it is like. What was deleted while nobody was connected is
    found missing from the next snapshot, and told then.
    """
    known: dict[str, int] = {}
    unseen: set[str] = set()
    marked = False

    def begin_anew() -> _Call[Change]:
        unseen.update(known)
        return begin()

    async for change in follow(client, begin_anew):
        kind = change.WhichOneof("change")
        if kind == "ready":
            for name in sorted(unseen):
                del known[name]
                yield type(change)(deleted=name)
            unseen.clear()
            if not marked:
                marked = True
                yield change
        elif kind == "deleted":
            unseen.discard(change.deleted)
            if known.pop(change.deleted, None) is not None:
                yield change
        elif kind is not None:
            name, content = what(change)
            unseen.discard(name)
            if known.get(name) != hash(content):
                known[name] = hash(content)
                yield change
