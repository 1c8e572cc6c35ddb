"""The logs of attempts that have ended, in the checkpoint storage of their job: how they lie there, and are read.

    <checkpoint_uri>/<job>/logs/<rank>-<attempt>/stdout.<first offset>.log.gz
                                                 stdout.<first offset>.times.gz

What was freed before is missing from the front, and so the name says at which offset a log begins: offsets are those
that it had on its node. The times are pairs of wall clock milliseconds and offset, as in the index beside a log.
Both are plain gzip.
"""

import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from holdfast.log_cursors import Cursors
from holdfast.log_text import LONGEST_LINE
from holdfast.storage.api import Reader, Storage
from holdfast.storage.places import open_storage, switched
from holdfast.v1 import job_pb2

STREAMS = {job_pb2.LOG_STREAM_STDOUT: "stdout", job_pb2.LOG_STREAM_STDERR: "stderr"}
RECORD = struct.Struct("<qq")
RECORD_EVERY_MS = 1_000
READ_BYTES = 1024 * 1024

_NAME = re.compile(r"(\d+)-(\d+)/(stdout|stderr)\.(\d+)\.log\.gz")
_GZIP = 16 + zlib.MAX_WBITS


class Archived(NamedTuple):
    """One log in an archive."""

    rank: int
    attempt: int
    stream: str
    first: int
    """The offset at which it begins."""

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.rank}-{self.attempt}/{self.stream}.{self.first}.log.gz"

    @property
    def times_name(self) -> str:
        """Of its times."""
        return f"{self.rank}-{self.attempt}/{self.stream}.{self.first}.times.gz"


def open_archive(job_id: str, checkpoint_uri: str, env: Mapping[str, str]) -> Storage:
    """Where the logs of a job are archived. `env` is what its workers have. Raises StorageError."""
    return open_storage(switched(checkpoint_uri, env), f"{job_id}/logs", None, env)


class Archive:
    """The logs of one rank that are archived, as far as a reader wants them. Everything raises OSError."""

    def __init__(
        self, storage: Storage, asked: job_pb2.StreamLogsRequest, rank: int, cursors: Cursors
    ) -> None:
        self._storage = storage
        self._asked = asked
        self._rank = rank
        self._cursors = cursors
        self._logs = self._find()

    @property
    def attempts(self) -> set[int]:
        """Those of which there is anything."""
        return {log.attempt for log in self._logs}

    def chunks(self) -> Iterator[job_pb2.StreamLogsResponse]:
        """What is there, oldest attempt first, cut as an agent cuts it."""
        tails = self._tails() if self._asked.HasField("tail") else {}
        for log in self._logs:
            if self._asked.HasField("tail") and log not in tails:
                continue
            stream = next(number for number, name in STREAMS.items() if name == log.stream)
            start = self._cursors.offset(log.rank, log.attempt, stream)
            if start is None:
                start = max(self._since(log), tails.get(log, 0))
            at = log.first
            for data in _pieces(self._storage, log.name):
                # Lines that end before the start are none of what was asked for.
                skip = data.rfind(b"\n", 0, start - at) + 1 if start > at else 0
                skip = min(len(data), start - at) if start >= at + len(data) else skip
                if len(data) > skip:
                    cursor = job_pb2.LogCursor(
                        rank=log.rank, attempt=log.attempt, stream=stream, offset=at + skip
                    )
                    skipped = log.first if at == log.first > start else 0
                    yield job_pb2.StreamLogsResponse(cursor=cursor, data=data[skip:], skipped=skipped)
                at += len(data)

    def _find(self) -> list[Archived]:
        found: dict[tuple[int, int, str], Archived] = {}
        for entry in self._storage.files():
            if not (match := _NAME.fullmatch(entry.name)):
                continue
            log = Archived(int(match[1]), int(match[2]), match[3], int(match[4]))
            if log.rank != self._rank or self._asked.attempt not in (0, log.attempt):
                continue
            place = (log.rank, log.attempt, log.stream)
            if place not in found or log.first < found[place].first:
                found[place] = log
        return sorted(found.values(), key=lambda log: (log.attempt, log.stream != "stdout"))

    def _since(self, log: Archived) -> int:
        if not self._asked.HasField("since"):
            return 0
        wanted = self._asked.since.ToMilliseconds() - RECORD_EVERY_MS
        end = log.first
        for offset_ms, offset in RECORD.iter_unpack(b"".join(_unzipped(self._storage, log.times_name))):
            if offset_ms > wanted:
                return int(offset)
        for data in _unzipped(self._storage, log.name):
            end += len(data)
        return end

    def _tails(self) -> dict[Archived, int]:
        """Where the last lines begin that were asked for, counted back from the newest attempt."""
        starts: dict[Archived, int] = {}
        wanted = dict.fromkeys(STREAMS.values(), self._asked.tail)
        begun = self._cursors.first_attempt(self._rank)
        for log in reversed(self._logs):
            if begun:
                if log.attempt >= begun:
                    starts[log] = 0
                continue
            lines, ends, end = 0, b"\n", log.first
            for data in _pieces(self._storage, log.name):
                lines, ends, end = lines + data.count(b"\n"), data[-1:], end + len(data)
            lines += ends != b"\n"
            starts[log] = self._line(log, lines - wanted[log.stream], end)
            wanted[log.stream] -= min(lines, wanted[log.stream])
        return starts

    def _line(self, log: Archived, number: int, end: int) -> int:
        """The offset of a line by its number."""
        if number <= 0:
            return 0
        at = log.first
        for data in _pieces(self._storage, log.name):
            here = data.count(b"\n")
            if here >= number:
                position = -1
                for _ in range(number):
                    position = data.find(b"\n", position + 1)
                return at + position + 1
            number, at = number - here, at + len(data)
        return end


def _pieces(storage: Storage, name: str) -> Iterator[bytes]:
    """A log in pieces that end at line ends where there are any."""
    rest = b""
    for data in _unzipped(storage, name):
        rest, at = rest + data, 0
        while len(rest) - at >= LONGEST_LINE:
            end = rest.rfind(b"\n", at, at + LONGEST_LINE) + 1 or at + LONGEST_LINE
            yield rest[at:end]
            at = end
        rest = rest[at:]
    if rest:
        yield rest


def _unzipped(storage: Storage, name: str) -> Iterator[bytes]:
    """What a gzip file holds, a mebibyte at a time. Raises OSError where it is none, or has an end missing."""
    unzip = zlib.decompressobj(_GZIP)
    with storage.open(name) as reader:
        try:
            for piece in _read(reader):
                data = unzip.decompress(piece, READ_BYTES)
                while data:
                    yield data
                    data = unzip.decompress(unzip.unconsumed_tail, READ_BYTES)
        except (zlib.error, EOFError) as error:
            raise OSError(f"{name} in {storage.uri} is damaged: {error}") from error
    if not unzip.eof:
        raise OSError(f"{name} in {storage.uri} is cut off")


def _read(reader: Reader) -> Iterator[bytes]:
    for offset in range(0, reader.size, READ_BYTES):
        buffer = bytearray(min(READ_BYTES, reader.size - offset))
        reader.read_into(memoryview(buffer), offset)
        yield bytes(buffer)
