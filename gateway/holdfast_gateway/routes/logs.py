"""What workers wrote."""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response, StreamingResponse

from holdfast.log_text import Lines, split_lines
from holdfast.v1 import job_pb2
from holdfast_gateway.docs import gives
from holdfast_gateway.iteration import closing
from holdfast_gateway.parts import Parts, Use
from holdfast_gateway.problems import invalid
from holdfast_gateway.streams import log_lines, respond, track_of

MOST_RANKS = 1_000
MOST = 2**31 - 1

Ranks = Annotated[
    list[Annotated[int, Query(ge=0, le=MOST)]],
    Query(max_length=MOST_RANKS, description="Only these; may be repeated."),
]
Attempt = Annotated[int, Query(ge=0, le=MOST, description="Only this one; 0: all that are still there.")]
Tail = Annotated[int | None, Query(ge=0, le=MOST, description="Only the last lines of each log.")]

router = APIRouter(tags=["logs"])


@router.get("/jobs/{job_id}/logs", **gives("text/plain"))
async def read_logs(
    job_id: str, parts: Use, rank: Ranks = [], attempt: Attempt = 0, tail: Tail = None
) -> Response:
    """Give what workers wrote so far, line by line with the rank in front."""
    await _check(parts, job_id, rank)
    return StreamingResponse(_text(parts, job_id, rank, attempt, tail), media_type="text/plain")


@router.get("/jobs/{job_id}/logs/stream", **gives(None))
async def stream_logs(
    job_id: str, request: Request, parts: Use, rank: Ranks = [], attempt: Attempt = 0, tail: Tail = None
) -> Response:
    """Stream what workers write: `line` with rank, attempt, stream, offset and text, and `end` with the job.

    Connect again with the `Last-Event-ID` of the last line, and every line comes once.
    """
    track = track_of(request, parts)
    await _check(parts, job_id, rank)
    return respond(request, parts, "logs", log_lines(parts, job_id, rank, attempt, tail, track))


async def _check(parts: Parts, job_id: str, ranks: list[int]) -> None:
    """Raise what a call would, before the answer has begun."""
    job = await parts.client.get_job(job_id)
    beyond = [rank for rank in ranks if rank >= job.spec.world_size]
    if beyond:
        last = job.spec.world_size - 1
        raise invalid(f"job {job.id} has no rank {beyond[0]}", [("rank", f"its ranks are 0 to {last}")])


async def _text(
    parts: Parts, job_id: str, ranks: list[int], attempt: int, tail: int | None
) -> AsyncIterator[bytes]:
    lines = Lines()
    async with closing(parts.client.stream_logs(job_id, ranks=ranks, attempt=attempt, tail=tail)) as chunks:
        async for chunk in chunks:
            text = b"".join(_headed(chunk.cursor.rank, block) for _, block in lines.add(chunk))
            if missing := _missing(chunk):
                text = f"holdfast: {missing}\n".encode() + text
            if text:
                yield text
    for (rank, _, _), _, rest in lines.finish():
        yield _headed(rank, rest)


def _headed(rank: int, block: bytes) -> bytes:
    head = b"[%d] " % rank
    return b"".join(head + line.removesuffix(b"\n") + b"\n" for line in split_lines(block))


def _missing(chunk: job_pb2.StreamLogsResponse) -> str:
    if chunk.HasField("away"):
        away = chunk.away
        return f"what rank {away.rank} wrote on {away.node} can't be read: {away.reason}"
    return f"{chunk.skipped} bytes of rank {chunk.cursor.rank} were freed before they could be read" * bool(
        chunk.skipped
    )
