"""Server-sent events. What a reader does not take is not read from the coordinator: a few messages are all that waits.

uvicorn holds back whoever sends while 64 KiB wait in a connection, so that the generator is not asked for more, gRPC's
flow control fills, and the coordinator and its agents wait. State is told as it is by then, not all that it was.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress
from typing import Any

import structlog
from fastapi import Request
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.responses import Response

from holdfast.client import TERMINAL
from holdfast.log_text import Lines, split_lines
from holdfast.v1 import job_pb2
from holdfast.wire import HoldfastError, NotFound, ResourceExhausted
from holdfast_gateway.answers import to_json
from holdfast_gateway.iteration import closing
from holdfast_gateway.parts import Parts
from holdfast_gateway.problems import invalid
from holdfast_gateway.tracks import Track, UnknownTrackError

HEARTBEAT_S = 15
"""Between comments on a stream, so that neither a proxy nor a reader takes it for dead."""
RETRY_MS = 1_000
"""After which a browser connects again."""
SEND_TIMEOUT_S = 300
"""A reader that takes nothing for so long is let go; it goes on from where it was."""
LINES_AT_ONCE = 256
"""Of a log, that go out as one; then others have their turn."""
MOST_STREAMS = 5_000
END = "end"
"""Name and id of the last event: whoever connects again with it is told that there is nothing more."""

Events = AsyncIterator[ServerSentEvent | bytes]
"""Each an event, or several of them as they go out."""

log = structlog.get_logger(__name__)


def event(name: str, data: str, event_id: str | None = None) -> ServerSentEvent:
    """One event; `data` is JSON."""
    return ServerSentEvent(data, event=name, id=event_id, sep="\n")


def mark(event_id: str) -> ServerSentEvent:
    """Have a reader keep an id without telling it anything."""
    return ServerSentEvent(id=event_id, sep="\n")


def respond(request: Request, parts: Parts, kind: str, events: Events) -> Response:
    """Stream events. A reader that has seen the end gets 204, at which browsers stop connecting."""
    if request.headers.get("last-event-id") == END:
        return Response(status_code=204)
    if parts.metrics.open_streams >= MOST_STREAMS:
        raise ResourceExhausted(f"{MOST_STREAMS} streams are open", "close some, or start another gateway")
    return EventSourceResponse(
        _told(parts, kind, events),
        ping=HEARTBEAT_S,
        ping_message_factory=lambda: ServerSentEvent(comment="still here", sep="\n"),
        sep="\n",
        send_timeout=SEND_TIMEOUT_S,
        headers={"Content-Type": "text/event-stream; charset=utf-8"},
    )


async def _told(parts: Parts, kind: str, events: Events) -> AsyncGenerator[ServerSentEvent | bytes, None]:
    """The events; an error that comes on the way is one, too, and ends the stream."""
    with parts.metrics.stream(kind) as sent:
        yield ServerSentEvent(retry=RETRY_MS, sep="\n")
        async with closing(events) as wanted:
            try:
                async for found in wanted:
                    sent.inc(found.count(b"\n\n") if isinstance(found, bytes) else 1)
                    yield found
            except HoldfastError as error:
                yield event("problem", _dump({"detail": error.message, "remedy": error.remedy}))
            except Exception as error:
                log.error("a stream broke", kind=kind, error=repr(error))
                raise


async def job_changes(parts: Parts, job_id: str, pause: float) -> Events:
    """A job now and after every change, with its workers, until it has ended; at most once in `pause` seconds."""
    seen = 0
    async with parts.boards.look(job_id) as board:
        while True:
            seen = await board.later_than(seen)
            job = board.job
            assert job is not None
            yield event("job", board.text())
            if job.state in TERMINAL:
                yield end_of(job)
                return
            await asyncio.sleep(pause)


async def all_jobs(parts: Parts) -> Events:
    """All jobs without their workers, `ready`, then what changes."""
    async with closing(parts.client.watch_jobs()) as changes:
        async for change in changes:
            match change.WhichOneof("change"):
                case "job":
                    yield event("job", to_json(change.job))
                case "deleted":
                    yield event("deleted", _dump({"job_id": change.deleted}))
                case _:
                    yield event("ready", "{}")


async def all_nodes(parts: Parts) -> Events:
    """All nodes, `ready`, then what changes."""
    async with closing(parts.client.watch_nodes()) as changes:
        async for change in changes:
            match change.WhichOneof("change"):
                case "node":
                    yield event("node", to_json(change.node))
                case "deleted":
                    yield event("deleted", _dump({"name": change.deleted}))
                case _:
                    yield event("ready", "{}")


async def timeline(parts: Parts, job_id: str, after: int) -> Events:
    """The timeline from behind a seq on, which is the id of each event."""
    async with closing(parts.client.watch_events(job_id, after=after)) as entries:
        async for entry in entries:
            yield event("event", to_json(entry), str(entry.seq))
    yield event(END, _dump({"job_id": job_id, "state": "", "reason": "the job was deleted"}), END)


def end_of(job: job_pb2.Job) -> ServerSentEvent:
    """The last event about a job."""
    state = job_pb2.JobState.Name(job.state)
    return event(END, _dump({"job_id": job.id, "state": state, "reason": job.reason}), END)


def track_of(request: Request, parts: Parts) -> Track:
    """Where a reader of logs goes on. Raises InvalidSpec."""
    known = request.headers.get("last-event-id", "")
    if not known or known == END:
        return Track()
    try:
        return parts.tracks.resume(known)
    except UnknownTrackError as error:
        raise invalid(
            "Last-Event-ID names no place that is known here, or not any more",
            remedy="connect without it, and read from the beginning",
        ) from error


async def log_lines(
    parts: Parts, job_id: str, ranks: list[int], attempt: int, tail: int | None, track: Track
) -> Events:
    """The lines of workers as they come, until the job has ended.

    The id of a line is where the reader is in all logs then.
    """
    lines = Lines()
    chunks = parts.client.stream_logs(
        job_id, ranks=ranks, attempt=attempt, follow=True, tail=tail, cursors=track.cursors()
    )
    async with closing(chunks) as found:
        async for chunk in found:
            if chunk.HasField("away"):
                away = chunk.away
                yield event("away", _dump({"rank": away.rank, "node": away.node, "reason": away.reason}))
                continue
            at = chunk.cursor
            place = (at.rank, at.attempt, at.stream)
            if place not in track:
                track.move(place, at.offset)
                yield mark(track.id(parts.tracks))
            if chunk.skipped:
                track.move(place, at.offset)
                freed = {**_place(*place), "at": at.offset, "bytes": chunk.skipped}
                yield event("skipped", _dump(freed), track.id(parts.tracks))
            for offset, block in lines.add(chunk):
                whole = split_lines(block)
                for some in range(0, len(whole), LINES_AT_ONCE):
                    told = whole[some : some + LINES_AT_ONCE]
                    yield _lines_from(parts, track, place, offset, told)
                    offset += sum(map(len, told))  # noqa: PLW2901  where the next ones begin
    for place, offset, rest in lines.finish():
        yield _lines_from(parts, track, place, offset, [rest])
    with suppress(NotFound):
        yield end_of(await parts.client.get_job(job_id))
        return
    yield event(END, _dump({"job_id": job_id, "state": "", "reason": "the job was deleted"}), END)


def _lines_from(
    parts: Parts,
    track: Track,
    place: tuple[int, int, "job_pb2.LogStream.ValueType"],
    offset: int,
    lines: list[bytes],
) -> bytes:
    """The events of some lines, to be sent as one: what a job writes may be millions."""
    head = _dump(_place(*place)).removesuffix("}")
    told = []
    for line in lines:
        text = json.dumps(line.decode(errors="replace").rstrip("\r\n"), ensure_ascii=False)
        track.move(place, offset + len(line))
        told.append(
            f'id: {track.id(parts.tracks)}\nevent: line\ndata: {head}, "at": {offset}, "text": {text}}}\n\n'
        )
        offset += len(line)
    return "".join(told).encode()


def _place(rank: int, attempt: int, stream: "job_pb2.LogStream.ValueType") -> dict[str, Any]:
    word = "stderr" if stream == job_pb2.LOG_STREAM_STDERR else "stdout"
    return {"rank": rank, "attempt": attempt, "stream": word}


def _dump(data: dict[str, Any]) -> str:
    return json.dumps(data, ensure_ascii=False)
