"""Answers OpenLog: reads a rank's logs, and pushes them on an RPC of their own.

Following waits for inotify, never on a timer. A heartbeat page makes no inotify events: it is written through mmap.
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import grpc.aio
import structlog

from holdfast.allocator import give_back
from holdfast.log_wire import Chunk, PushCall, Pushed, open_push
from holdfast.v1 import agent_pb2, job_pb2
from holdfast_agent.inotify import Changes, Inotify
from holdfast_agent.log_file import STDERR, STDOUT, LogReader
from holdfast_agent.shim import EXIT

CHUNK = 2**20
"""Pushed in one message. Each costs the same three times on its way, whatever its size."""
LOOK_EVERY_S = 0.01
"""What is written at short intervals is read together; what comes after a pause, at once."""
STREAMS = {job_pb2.LOG_STREAM_STDOUT: STDOUT, job_pb2.LOG_STREAM_STDERR: STDERR}

log = structlog.get_logger(__name__)

Place = tuple[int, int]
"""attempt, stream"""


async def push(channel: grpc.aio.Channel, asked: agent_pb2.OpenLog, job: Path, inotify: Inotify) -> None:
    """Push what was asked for until it is all pushed, or nobody wants it any more."""
    call = open_push(channel)
    # A follower of a silent worker writes nothing, and would not notice that its reader has gone.
    writing = asyncio.create_task(_write(call, asked, job, inotify))
    try:
        await call
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.CANCELLED:
            log.info(
                "a log was not pushed to its end", job=asked.job_id, rank=asked.rank, why=error.details()
            )
    finally:
        call.cancel()
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        give_back()


async def _write(
    call: PushCall,
    asked: agent_pb2.OpenLog,
    job: Path,
    inotify: Inotify,
) -> None:
    try:
        await call.write(Pushed(asked.request_id))
        with contextlib.closing(Reading(job, asked, inotify)) as reading:
            async for chunk in reading.chunks():
                await call.write(Pushed(chunk=chunk))
        await call.done_writing()
    except OSError as error:
        log.warning("a log can't be read", job=asked.job_id, rank=asked.rank, why=str(error))
        call.cancel()


class Reading:
    """One OpenLog: the logs of one rank, of one attempt or all of them, from the places that it names."""

    def __init__(self, job: Path, asked: agent_pb2.OpenLog, inotify: Inotify) -> None:
        self._job = job
        self._asked = asked
        self._offsets: dict[Place, int] = {(c.attempt, c.stream): c.offset for c in asked.cursors}
        self._changes = Changes(inotify)
        self._finished: set[int] = set()
        """Attempts that have ended, and are read to their end."""
        self._first_attempt = asked.first_attempt

    async def chunks(self) -> AsyncIterator[Chunk]:
        """Yield what is there; with `follow` also what comes, until the one attempt that was asked for has ended.

        One that follows all attempts ends when nobody reads it any more: there may always be another attempt. Files
        are read in threads: a disk that is slow is not the heartbeats' business.
        """
        follow = self._asked.follow
        begun = not self._asked.HasField("tail")
        loop = asyncio.get_running_loop()
        while True:
            attempts = self._watch() if follow else self._attempts()
            if not begun:
                for chunk in await asyncio.to_thread(self._begin_at_tail, attempts):
                    yield chunk
                begun, attempts = True, self._attempts()
            fresh = attempts
            while True:
                for number, path in fresh.items():
                    # An attempt is read to its very end only if it had ended before it was read.
                    ended = (path / EXIT).exists()
                    more = True
                    while more:
                        chunks, more = await asyncio.to_thread(
                            self._read, path, number, complete=ended or not follow
                        )
                        for chunk in chunks:
                            yield chunk
                    if ended and number == self._asked.attempt:
                        return
                    if ended:
                        self._finished.add(number)
                if not follow:
                    return
                next_look = loop.time() + LOOK_EVERY_S
                changed = await self._changes.wait()
                if (early := next_look - loop.time()) > 0:
                    await asyncio.sleep(early)
                    changed |= self._changes.take()
                if self._job in changed or self._job.parent in changed:
                    break  # there may be a new attempt
                fresh = {number: path for number, path in attempts.items() if path in changed}

    def close(self) -> None:
        """Let go of what it holds."""
        self._changes.close()

    def _watch(self) -> dict[int, Path]:
        """Watch first, then look: what comes in between shows as a change."""
        if not self._changes.watch(self._job):
            self._changes.watch(self._job.parent)  # its first worker may be about to start
            self._changes.watch(self._job)
        attempts = self._attempts()
        return {number: path for number, path in attempts.items() if self._changes.watch(path)}

    def _attempts(self) -> dict[int, Path]:
        try:
            names = os.listdir(self._job)  # noqa: PTH208  there may be many attempts, and each is no path yet
        except FileNotFoundError:
            return {}
        prefix = f"{self._asked.rank}-"
        numbers = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
        wanted = [int(number) for number in numbers if number.isdecimal()]
        return {
            number: self._job / f"{prefix}{number}"
            for number in sorted(wanted)
            if self._asked.attempt in (0, number)
            and number >= self._first_attempt
            and number not in self._finished
        }

    def _begin_at_tail(self, attempts: dict[int, Path]) -> list[Chunk]:
        """Say of each log where its last lines begin, and begin there: what comes later is not counted again."""
        begins = []
        wanted = dict.fromkeys(STREAMS, self._asked.tail)
        for number, path in sorted(attempts.items(), reverse=True):
            for stream, name in STREAMS.items():
                if (number, stream) in self._offsets:
                    continue
                with contextlib.suppress(FileNotFoundError), LogReader(str(path), name) as log:
                    start, found = log.last_lines(wanted[stream])
                    self._offsets[number, stream] = max(start, self._since(log))
                    wanted[stream] -= found
                    begins.append(self._chunk(number, stream, self._offsets[number, stream]))
            if not any(wanted.values()):
                self._first_attempt = max(self._first_attempt, number)
                break
        return begins[::-1]

    def _since(self, log: LogReader) -> int:
        return log.since(self._asked.since.ToMilliseconds()) if self._asked.HasField("since") else 0

    def _read(self, path: Path, attempt: int, *, complete: bool) -> tuple[list[Chunk], bool]:
        """Read on in the logs of one attempt: some chunks, that end at line ends where there are any.

        Also gives whether there is more. Of each log so much is read that the other one does not wait for long.
        """
        chunks: list[Chunk] = []
        more = False
        for stream, name in STREAMS.items():
            try:
                log = LogReader(str(path), name)
            except FileNotFoundError:
                continue
            with log:
                place = (attempt, stream)
                offset = self._offsets[place] if place in self._offsets else self._since(log)
                at, data = log.read(offset, CHUNK)
                size = cut(data, complete=complete)
                if size or at != offset:
                    chunks.append(self._chunk(attempt, stream, at, data, size, at - offset))
                    more |= len(data) == CHUNK
                self._offsets[place] = at + size
        return chunks, more

    def _chunk(
        self,
        attempt: int,
        stream: "job_pb2.LogStream.ValueType",
        offset: int,
        data: bytes = b"",
        size: int = 0,
        skipped: int = 0,
    ) -> Chunk:
        at = job_pb2.LogCursor(rank=self._asked.rank, attempt=attempt, stream=stream, offset=offset)
        return Chunk(job_pb2.StreamLogsResponse(cursor=at, skipped=skipped), data, 0, size)


def cut(data: bytes, *, complete: bool) -> int:
    """How much of a piece of a log to pass on: up to its last line end; all of it where no more of the line comes."""
    full = len(data) == CHUNK
    end = data.rfind(b"\n") + 1
    if (complete and not full) or (full and not end):
        return len(data)
    return end
