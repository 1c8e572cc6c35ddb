"""Streams of all jobs, all nodes, and the timeline: what there is, then what changes.

Nothing is kept for a reader but names (changes.py) or a place in the timeline, so that a slow one costs little; what it
is sent waits for it in gRPC's flow control, one piece at a time.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from functools import partial
from typing import TypeVar

from google.protobuf.message import Message

from holdfast.v1 import job_pb2, node_pb2
from holdfast_coordinator import codec
from holdfast_coordinator.changes import Topic, WatchOverError
from holdfast_coordinator.core.effects import Problem, Refusal
from holdfast_coordinator.core.model import Entry
from holdfast_coordinator.core.state import State
from holdfast_coordinator.engine import Engine, NotLeadingError, RefusedError
from holdfast_coordinator.rpc.errors import Context, abort_refused
from holdfast_coordinator.store.api import Store, StoreError

M = TypeVar("M", bound=Message)
T = TypeVar("T")

WATCH_PAUSE_S = 0.03
"""From a change to the look at it: who restarts goes before who watches, and what changes together shows so."""
WATCH_PAUSE_S_A_RANK = 0.0001
"""And so much more for each rank: a job of 10,000 is shown once a second, however many heartbeats come."""
JOBS_AT_ONCE = NODES_AT_ONCE = 100
"""Looked at in one go: agents wait meanwhile."""
EVENTS_AT_ONCE = 100
"""Held for a reader: with all of their evidence 2 MiB."""


async def told(context: Context, stream: AsyncIterator[T]) -> AsyncIterator[T]:
    """Give a stream out; end the call with what the engine said when it breaks."""
    try:
        async for item in stream:
            yield item
    except WatchOverError as error:
        await abort_refused(context, NotLeadingError(str(error)))
    except (RefusedError, NotLeadingError, StoreError) as error:
        await abort_refused(context, error)


async def jobs(
    engine: Engine, look: Callable[[State, str], job_pb2.Job | None], *, with_workers: bool
) -> AsyncIterator[job_pb2.WatchJobsResponse]:
    """All jobs, the mark, their changes. `look` gives one as it is to be shown. Raises as `_all`."""

    def newest_first(state: State) -> Iterable[str]:
        found = sorted(state.jobs.values(), key=lambda job: (job.created_ms, job.id), reverse=True)
        return [job.id for job in found]

    topic, at_once = (Topic.WORKERS, 1) if with_workers else (Topic.JOBS, JOBS_AT_ONCE)
    changes = _all(engine, topic, newest_first, look, _content, at_once)
    async for job_id, job in changes:
        if job is not None:
            yield job_pb2.WatchJobsResponse(job=job)
        elif job_id:
            yield job_pb2.WatchJobsResponse(deleted=job_id)
        else:
            yield job_pb2.WatchJobsResponse(ready=True)


async def nodes(
    engine: Engine, look: Callable[[State, str], node_pb2.Node | None]
) -> AsyncIterator[node_pb2.WatchNodesResponse]:
    """All nodes, the mark, their changes. `look` gives one as it is to be shown. Raises as `_all`."""

    def content(node: node_pb2.Node) -> bytes:
        """All but when it was heard from, which is no change."""
        copy = node_pb2.Node()
        copy.CopyFrom(node)
        copy.ClearField("last_heard_at")
        return _content(copy)

    changes = _all(engine, Topic.NODES, lambda state: sorted(state.nodes), look, content, NODES_AT_ONCE)
    async for name, node in changes:
        if node is not None:
            yield node_pb2.WatchNodesResponse(node=node)
        elif name:
            yield node_pb2.WatchNodesResponse(deleted=name)
        else:
            yield node_pb2.WatchNodesResponse(ready=True)


async def events(engine: Engine, job_id: str, after: int) -> AsyncIterator[job_pb2.WatchEventsResponse]:
    """The timeline behind `after`, and what comes; of one job until it is deleted.

    Raises RefusedError, NotLeadingError, StoreError, WatchOverError.
    """
    with engine.changes.watch(Topic.EVENTS, job_id) as watch:
        newest = await engine.read(lambda state: state.next_seq - 1)
        there = await engine.read(lambda state: not job_id or job_id in state.jobs)
        if after > newest:
            raise RefusedError(_beyond(after, newest))
        while True:
            watch.take()
            entries = await engine.history(partial(_entries, job_id, after))
            for entry in entries:
                after = entry.seq
                yield job_pb2.WatchEventsResponse(event=codec.event_to_proto(entry))
                there = there and not (job_id and entry.kind == "JobDeleted")
            if len(entries) == EVENTS_AT_ONCE:
                continue
            if not there:
                return
            await watch.changed()
            await asyncio.sleep(WATCH_PAUSE_S)


def _entries(job_id: str, after: int, store: Store) -> list[Entry]:
    return store.entries(job_id=job_id, after=after, limit=EVENTS_AT_ONCE)


def _beyond(after: int, newest: int) -> Refusal:
    message = f"there is no event {after} yet: the newest is {newest}"
    remedy = "begin with after_seq 0; whoever gave that number had another state directory"
    return Refusal(Problem.FAILED_PRECONDITION, message, remedy)


async def _all(
    engine: Engine,
    topic: Topic,
    names: Callable[[State], Iterable[str]],
    look: Callable[[State, str], M | None],
    content: Callable[[M], bytes],
    at_once: int,
) -> AsyncIterator[tuple[str, M | None]]:
    """Everything under its name, then ("", None), then whatever is other than it was shown last; None: it is gone.

    Raises NotLeadingError, WatchOverError.
    """
    with engine.changes.watch(topic) as watch:
        due = watch.take(await engine.read(names))
        ready = False
        while True:
            ranks = 0
            for begin in range(0, len(due), at_once):
                some = due[begin : begin + at_once]
                found = await engine.read(partial(_looks, look, some))
                for name, item in zip(some, found, strict=True):
                    ranks += len(item.workers) if isinstance(item, job_pb2.Job) else 0
                    if watch.is_news(name, None if item is None else content(item)):
                        yield name, item
            if not ready:
                yield "", None
                ready = True
            await watch.changed()
            await asyncio.sleep(WATCH_PAUSE_S + ranks * WATCH_PAUSE_S_A_RANK)
            due = watch.take()


def _looks(look: Callable[[State, str], M | None], names: Iterable[str], state: State) -> list[M | None]:
    return [look(state, name) for name in names]


def _content(message: Message) -> bytes:
    return message.SerializeToString(deterministic=True)
