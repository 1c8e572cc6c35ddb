"""Chunks of logs on the wire, whose data is handed on as it came.

A chunk is a StreamLogsResponse. Parsed and serialized whole, its data is copied eight times by each who passes it on.
So the rest of it is parsed alone, and the data stays a part of what was received. The bytes are protobuf's: what is
written here anybody reads, and whoever writes them is read here.
"""

from typing import Any, NamedTuple, TypeAlias

import grpc.aio

from holdfast.v1 import agent_pb2, job_pb2

_CHUNK = agent_pb2.PushLogsRequest.CHUNK_FIELD_NUMBER
_DATA = job_pb2.StreamLogsResponse.DATA_FIELD_NUMBER
_BYTES = 2
_SIZES = {1: 8, 5: 4}
"""Of what has a fixed one, by wire type."""
_PUSH = f"/{agent_pb2.DESCRIPTOR.services_by_name['AgentService'].full_name}/PushLogs"
_STREAM = f"/{job_pb2.DESCRIPTOR.services_by_name['JobService'].full_name}/StreamLogs"

PushCall: TypeAlias = "grpc.aio.StreamUnaryCall[Pushed, agent_pb2.PushLogsResponse]"


class Chunk:
    """A StreamLogsResponse, for those who pass its data on, or look at it where it is."""

    __slots__ = ("end", "head", "raw", "start")

    def __init__(
        self, head: job_pb2.StreamLogsResponse, raw: bytes = b"", start: int = 0, end: int | None = None
    ) -> None:
        """Of `head`, which has no data, and as its data what lies in `raw` from `start` to `end`."""
        self.head = head
        self.raw = raw
        self.start = start
        self.end = len(raw) if end is None else end

    @property
    def cursor(self) -> job_pb2.LogCursor:
        """Where its data begins."""
        return self.head.cursor

    @property
    def away(self) -> job_pb2.LogsAway:
        """What can't be had, and why."""
        return self.head.away

    @property
    def skipped(self) -> int:
        """How many bytes before it were freed."""
        return self.head.skipped

    @skipped.setter
    def skipped(self, count: int) -> None:
        self.head.skipped = count

    @property
    def data(self) -> bytes:
        """A copy of its data."""
        return self.raw[self.start : self.end]

    @data.setter
    def data(self, data: bytes) -> None:
        self.raw, self.start, self.end = data, 0, len(data)

    def HasField(self, name: Any) -> bool:  # noqa: N802  as messages have it
        """Whether one of the fields is set that can be."""
        return self.head.HasField(name)

    def SerializeToString(self) -> bytes:  # noqa: N802
        """Write it as protobuf does."""
        return b"".join(self.parts())

    def message(self) -> job_pb2.StreamLogsResponse:
        """All of it as a message."""
        self.head.data = self.data
        return self.head

    def parts(self) -> tuple[bytes | memoryview, ...]:
        """What it is as protobuf, its data not copied."""
        head, size = self.head.SerializeToString(), self.end - self.start
        if not size:
            return (head,)
        return head, _begin(_DATA, size), memoryview(self.raw)[self.start : self.end]

    @classmethod
    def FromString(cls, raw: bytes) -> "Chunk":  # noqa: N802
        """Read one. Raises ValueError, DecodeError."""
        return cls.within(raw, 0, len(raw))

    @classmethod
    def within(cls, raw: bytes, start: int, end: int) -> "Chunk":
        """Read one that is a part of something. Raises ValueError, DecodeError."""
        rest, data = _take_out(_DATA, raw, start, end)
        return cls(job_pb2.StreamLogsResponse.FromString(rest), raw, *(data or (end, end)))


AnyChunk: TypeAlias = Chunk | job_pb2.StreamLogsResponse


class Pushed(NamedTuple):
    """A PushLogsRequest."""

    request_id: str = ""
    chunk: Chunk | None = None

    def SerializeToString(self) -> bytes:  # noqa: N802
        """Write it as protobuf does."""
        head = agent_pb2.PushLogsRequest(request_id=self.request_id).SerializeToString()
        if self.chunk is None:
            return head
        parts = self.chunk.parts()
        return b"".join((head, _begin(_CHUNK, sum(map(len, parts))), *parts))

    @staticmethod
    def FromString(raw: bytes) -> "Pushed":  # noqa: N802
        """Read one. Raises ValueError, DecodeError."""
        rest, chunk = _take_out(_CHUNK, raw, 0, len(raw))
        head = agent_pb2.PushLogsRequest.FromString(rest)
        return Pushed(head.request_id, Chunk.within(raw, *chunk) if chunk else None)


def span(chunk: AnyChunk) -> tuple[bytes, int, int]:
    """Where the data of a chunk lies: in what, from where, up to where."""
    if isinstance(chunk, Chunk):
        return chunk.raw, chunk.start, chunk.end
    data = chunk.data
    return data, 0, len(data)


def as_message(chunk: AnyChunk) -> job_pb2.StreamLogsResponse:
    """A chunk as a message, with a copy of its data."""
    return chunk.message() if isinstance(chunk, Chunk) else chunk


def stream_logs(
    channel: grpc.aio.Channel, request: job_pb2.StreamLogsRequest
) -> "grpc.aio.UnaryStreamCall[job_pb2.StreamLogsRequest, Chunk]":
    """Begin a StreamLogs call."""
    call: grpc.aio.UnaryStreamMultiCallable[job_pb2.StreamLogsRequest, Chunk] = channel.unary_stream(
        _STREAM,
        request_serializer=job_pb2.StreamLogsRequest.SerializeToString,
        response_deserializer=Chunk.FromString,
    )
    return call(request)


def open_push(channel: grpc.aio.Channel) -> PushCall:
    """Begin a PushLogs call."""
    call = channel.stream_unary(
        _PUSH,
        request_serializer=Pushed.SerializeToString,
        response_deserializer=agent_pb2.PushLogsResponse.FromString,
    )
    return call()


def _take_out(number: int, raw: bytes, at: int, end: int) -> tuple[bytes, tuple[int, int] | None]:
    """A message without a field of bytes, and where the content of that lies. Raises ValueError."""
    rest, found = [], None
    try:
        while at < end:
            begun = at
            tag, at = _varint(raw, at)
            kind = tag & 7
            if kind == _BYTES:
                size, at = _varint(raw, at)
                start, at = at, at + size
                if tag >> 3 == number:
                    found = start, at
                    continue
            elif kind:
                at += _SIZES[kind]
            else:
                _, at = _varint(raw, at)
            rest.append(raw[begun:at])
    except (IndexError, KeyError):
        raise ValueError("this is no message of protobuf") from None
    if at != end:
        raise ValueError("a message of protobuf is cut off")
    return b"".join(rest), found


def _begin(number: int, size: int) -> bytes:
    """What comes before the content of a field of bytes."""
    begun = bytearray((number << 3 | _BYTES,))
    while size > 0x7F:
        begun.append(size & 0x7F | 0x80)
        size >>= 7
    begun.append(size)
    return bytes(begun)


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):  # ten bytes at most: longer ones would be all the more work
        byte = raw[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number of protobuf has no end")
