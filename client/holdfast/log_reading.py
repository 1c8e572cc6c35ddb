"""A StreamLogs call that outlives connections, and goes to the archive for what no node has any more."""

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Protocol

import grpc

from holdfast import wire
from holdfast.log_cursors import Cursors
from holdfast.v1 import job_pb2

RECONNECT_S = 0.5
"""Between tries to go on with a stream while the coordinator is away."""

Call = Callable[
    [job_pb2.StreamLogsRequest],
    grpc.aio.UnaryStreamCall[job_pb2.StreamLogsRequest, job_pb2.StreamLogsResponse],
]


class _Client(Protocol):
    async def get_job(self, job_id: str) -> job_pb2.Job: ...

    def raise_unless_away(self, error: grpc.aio.AioRpcError) -> None: ...


async def read_logs(
    client: _Client, call: Call, request: job_pb2.StreamLogsRequest
) -> AsyncGenerator[job_pb2.StreamLogsResponse, None]:
    """Yield what was asked for, every byte once."""
    job = await client.get_job(request.job_id)
    cursors = Cursors(request.cursors)
    while True:
        del request.cursors[:]
        request.cursors.extend(cursors.all())
        try:
            with wire.ended_after(call(request)) as chunks:
                async for chunk in chunks:
                    if chunk.HasField("away"):
                        async for found in _from_archive(job, request, chunk.away, cursors):
                            if found.HasField("away") or cursors.take(found):
                                yield found
                    elif cursors.take(chunk):
                        yield chunk
        except grpc.aio.AioRpcError as error:
            client.raise_unless_away(error)
        else:
            return
        await asyncio.sleep(RECONNECT_S)


async def _from_archive(
    job: job_pb2.Job, request: job_pb2.StreamLogsRequest, away: job_pb2.LogsAway, cursors: Cursors
) -> AsyncIterator[job_pb2.StreamLogsResponse]:
    """What the archive has of a rank; and where that can't be all of it, what says so."""
    from holdfast.archive import Archive, open_archive
    from holdfast.storage.api import StorageError

    uri, missing = job.spec.checkpoint_uri, ""
    if not uri:
        missing = "the job has no checkpoint_uri where an archive could be"
    else:
        try:
            storage = open_archive(job.id, uri, {**os.environ, **job.spec.env})
            archive = await asyncio.to_thread(Archive, storage, request, away.rank, cursors)
            chunks = archive.chunks()
            while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
                yield chunk
            missing = _missing(job, request, away, archive.attempts, storage.uri)
        except (OSError, StorageError) as error:
            missing = f"its archive can't be read: {error}"
    if missing:
        reason = f"{away.reason}, and {missing}"
        yield job_pb2.StreamLogsResponse(away=job_pb2.LogsAway(rank=away.rank, node=away.node, reason=reason))


def _missing(
    job: job_pb2.Job,
    request: job_pb2.StreamLogsRequest,
    away: job_pb2.LogsAway,
    there: set[int],
    uri: str,
) -> str:
    """What is surely not in the archive; empty when nothing is."""
    if not there:
        return f"there is no archive of it in {uri}"
    worker = next(worker for worker in job.workers if worker.rank == away.rank)
    newest = request.attempt or worker.attempt
    if worker.node == away.node and newest not in there:
        return f"attempt {newest} is not in the archive {uri}"
    return ""
