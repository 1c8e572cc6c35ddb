"""Answers OpenLog: reads a rank's logs, and pushes them on an RPC of their own.

Following waits for inotify, never on a timer. The mapped heartbeat page makes no inotify events.
"""

import ctypes
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc.aio
import structlog

from holdfast.v1 import agent_pb2, agent_pb2_grpc, job_pb2
from holdfast_agent.readable import readable
from holdfast_agent.workdir import EXIT, STREAMS

CHUNK = 64 * 1024
_IN_MODIFY, _IN_CREATE, _IN_MOVED_TO = 0x2, 0x100, 0x80
_libc = ctypes.CDLL(None, use_errno=True)

log = structlog.get_logger(__name__)

Place = tuple[int, int]
"""attempt, stream"""


async def push(stub: "agent_pb2_grpc.AgentServiceAsyncStub", asked: agent_pb2.OpenLog, job: Path) -> None:
    """Push what was asked for until it is all pushed, or nobody wants it any more."""
    reading = Reading(job, asked)

    async def requests() -> AsyncIterator[agent_pb2.PushLogsRequest]:
        yield agent_pb2.PushLogsRequest(request_id=asked.request_id)
        async for chunk in reading.chunks():
            yield agent_pb2.PushLogsRequest(chunk=chunk)

    try:
        await stub.PushLogs(requests())
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.CANCELLED:
            log.info(
                "a log was not pushed to its end", job=asked.job_id, rank=asked.rank, why=error.details()
            )
    finally:
        reading.close()


class Reading:
    """One OpenLog: the logs of one rank, of one attempt or all of them, from the places that it names."""

    def __init__(self, job: Path, asked: agent_pb2.OpenLog) -> None:
        self._job = job
        self._asked = asked
        self._offsets: dict[Place, int] = {(c.attempt, c.stream): c.offset for c in asked.cursors}
        self._changes: _Changes | None = None
        if asked.follow:
            job.mkdir(mode=0o700, exist_ok=True)  # its first worker may be about to start
            self._changes = _Changes()

    async def chunks(self) -> AsyncIterator[job_pb2.StreamLogsResponse]:
        """Yield what is there; with `follow` also what comes, until the one attempt that was asked for has ended."""
        while True:
            attempts = self._attempts()
            if self._changes is not None:
                # Watch first, then read: what comes in between shows as a change.
                self._changes.watch(self._job)
                for path in attempts.values():
                    self._changes.watch(path)
            # An attempt is read to its very end only if it had ended before it was read.
            ended = {number for number, path in attempts.items() if (path / EXIT).exists()}
            for number, path in attempts.items():
                for stream in (job_pb2.LOG_STREAM_STDOUT, job_pb2.LOG_STREAM_STDERR):
                    complete = number in ended or not self._asked.follow
                    for chunk in self._read(path, number, stream, complete=complete):
                        yield chunk
            if self._changes is None or self._asked.attempt in ended:
                return
            await self._changes.wait()

    def close(self) -> None:
        """Let go of what it holds."""
        if self._changes is not None:
            self._changes.close()

    def _attempts(self) -> dict[int, Path]:
        found = {}
        for path in self._job.glob(f"{self._asked.rank}-*"):
            number = path.name.rpartition("-")[2]
            if number.isdecimal() and self._asked.attempt in (0, int(number)):
                found[int(number)] = path
        return dict(sorted(found.items()))

    def _read(
        self, path: Path, attempt: int, stream: job_pb2.LogStream.ValueType, *, complete: bool
    ) -> Iterator[job_pb2.StreamLogsResponse]:
        """Read on in one log, in chunks that end at line ends where there are any."""
        offset = self._offsets.get((attempt, stream), 0)
        try:
            file = (path / STREAMS[stream - 1]).open("rb", buffering=0)
        except FileNotFoundError:
            return
        with file:
            while data := os.pread(file.fileno(), CHUNK, offset):
                data = data[: _cut(data, complete=complete)]
                if not data:
                    return
                at = job_pb2.LogCursor(rank=self._asked.rank, attempt=attempt, stream=stream, offset=offset)
                offset += len(data)
                self._offsets[attempt, stream] = offset
                yield job_pb2.StreamLogsResponse(cursor=at, data=data)


def _cut(data: bytes, *, complete: bool) -> int:
    """How much of a piece of a log to pass on: up to its last line end; all of it where no more of the line comes."""
    full = len(data) == CHUNK
    end = data.rfind(b"\n") + 1
    if (complete and not full) or (full and not end):
        return len(data)
    return end


class _Changes:
    """Tells when something is written into, or appears in, the directories that it watches."""

    def __init__(self) -> None:
        self._fd = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "inotify")
        self._watched: set[Path] = set()

    def watch(self, directory: Path) -> None:
        if directory in self._watched:
            return
        events = _IN_MODIFY | _IN_CREATE | _IN_MOVED_TO
        if _libc.inotify_add_watch(self._fd, os.fsencode(directory), events) >= 0:
            self._watched.add(directory)

    async def wait(self) -> None:
        await readable(self._fd)
        os.read(self._fd, CHUNK)

    def close(self) -> None:
        os.close(self._fd)
