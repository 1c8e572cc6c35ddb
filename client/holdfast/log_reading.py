"""A StreamLogs call that outlives connections, and goes to the archive for what no node has any more."""

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Protocol

import grpc

from holdfast import wire
from holdfast.log_cursors import Cursors
from holdfast.log_wire import AnyChunk, Chunk
from holdfast.v1 import job_pb2

RECONNECT_S = 0.5
"""Between tries to go on with a stream while the coordinator is away."""

MOST_NAMED = 10
"""Attempts, in a sentence."""

Call = Callable[[job_pb2.StreamLogsRequest], grpc.aio.UnaryStreamCall[job_pb2.StreamLogsRequest, Chunk]]


class _Client(Protocol):
    async def get_job(self, job_id: str) -> job_pb2.Job: ...

    def raise_unless_away(self, error: grpc.aio.AioRpcError) -> None: ...


async def read_logs(
    client: _Client, call: Call, request: job_pb2.StreamLogsRequest
) -> AsyncGenerator[AnyChunk, None]:
    """Yield what was asked for, every byte once."""
    job = await client.get_job(request.job_id)
    cursors = Cursors(request.cursors)
    unsure: dict[int, tuple[job_pb2.LogsAway, set[int]]] = {}
    """By rank, a node that is away, and the attempts that the archive has."""
    while True:
        del request.cursors[:]
        request.cursors.extend(cursors.all())
        try:
            with wire.ended_after(call(request)) as chunks:
                async for chunk in chunks:
                    if chunk.HasField("away"):
                        async for found in _from_archive(job, request, chunk.away, cursors, unsure):
                            if found.HasField("away") or cursors.take(found):
                                yield found
                    elif cursors.take(chunk):
                        yield chunk
        except grpc.aio.AioRpcError as error:
            client.raise_unless_away(error)
        else:
            for away, there in unsure.values():
                if missing := _nowhere(job, request, away.rank, there, cursors):
                    yield _away(away, missing)
            return
        await asyncio.sleep(RECONNECT_S)


async def _from_archive(
    job: job_pb2.Job,
    request: job_pb2.StreamLogsRequest,
    away: job_pb2.LogsAway,
    cursors: Cursors,
    unsure: dict[int, tuple[job_pb2.LogsAway, set[int]]],
) -> AsyncIterator[job_pb2.StreamLogsResponse]:
    """What the archive has of a rank; and where that can't be all of it, what says so. Else it is `unsure`."""
    from holdfast.archive import Archive, open_archive
    from holdfast.storage.api import StorageError

    uri, missing = job.spec.checkpoint_uri, ""
    if not uri:
        missing = "the job has no checkpoint_uri by which to find an archive"
    else:
        try:
            storage = open_archive(job.id, uri, {**os.environ, **job.spec.env})
            archive = await asyncio.to_thread(Archive, storage, request, away.rank, cursors)
            chunks = archive.chunks()
            while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
                yield chunk
            missing = _missing(job, request, away, archive.attempts, storage.uri)
            if not missing:
                unsure[away.rank] = (away, archive.attempts)
        except (OSError, StorageError) as error:
            missing = f"its archive can't be read: {error}"
    if missing:
        yield _away(away, missing)


def _away(away: job_pb2.LogsAway, missing: str) -> job_pb2.StreamLogsResponse:
    reason = f"{away.reason}, and {missing}"
    return job_pb2.StreamLogsResponse(away=job_pb2.LogsAway(rank=away.rank, node=away.node, reason=reason))


def _nowhere(
    job: job_pb2.Job, request: job_pb2.StreamLogsRequest, rank: int, there: set[int], cursors: Cursors
) -> str:
    """Which attempts before the newest are nowhere, of which nobody can say that they were not on a node that is away.

    Of the last lines, and of those since a time, that is not known.
    """
    if request.HasField("tail") or request.HasField("since"):
        return ""
    worker = next(worker for worker in job.workers if worker.rank == rank)
    found = there | {cursor.attempt for cursor in cursors.of(rank)}
    if request.attempt == worker.attempt and worker.node:
        found.add(worker.attempt)  # where it is, is known
    wanted = [request.attempt] if request.attempt else range(1, worker.attempt)
    missing = [attempt for attempt in wanted if attempt not in found]
    if not missing:
        return ""
    more = f" and {len(missing) - MOST_NAMED} more" if len(missing) > MOST_NAMED else ""
    return f"of attempt {', '.join(map(str, missing[:MOST_NAMED]))}{more} nothing is in the archive or on another node"


def _missing(
    job: job_pb2.Job,
    request: job_pb2.StreamLogsRequest,
    away: job_pb2.LogsAway,
    there: set[int],
    uri: str,
) -> str:
    """What is surely not in the archive; empty when nothing is."""
    worker = next(worker for worker in job.workers if worker.rank == away.rank)
    wanted = request.attempt or worker.attempt
    if worker.node == away.node and wanted == worker.attempt:
        if there and wanted not in there:
            return f"attempt {wanted} is not in the archive {uri}"
    elif request.attempt:
        return ""  # it may have been elsewhere
    return "" if there else f"there is no archive of it in {uri}"
