"""Chunks of logs on the wire: the bytes of protobuf, written and read without their data being touched."""

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from holdfast.log_cursors import Cursors
from holdfast.log_text import Lines
from holdfast.log_wire import Chunk, Pushed, as_message
from holdfast.v1 import agent_pb2, job_pb2

OUT = job_pb2.LOG_STREAM_STDOUT
SIZES = st.one_of(st.integers(0, 300), st.sampled_from((2**14 - 1, 2**14, 2**21)))  # what takes one byte more
HEADS = st.builds(
    job_pb2.StreamLogsResponse,
    cursor=st.builds(
        job_pb2.LogCursor,
        rank=st.integers(0, 300),
        attempt=st.integers(0, 2**31 - 1),
        stream=st.just(OUT),
        offset=st.integers(0, 2**62),
    ),
    skipped=st.integers(0, 2**62),
)


def whole(head, data):
    message = job_pb2.StreamLogsResponse()
    message.CopyFrom(head)
    message.data = data
    return message


@given(HEADS, SIZES, st.integers(0, 9), st.text(max_size=20))
def test_protobuf_reads_what_is_written_and_writes_what_is_read(head, size, before, request_id):
    data = b"0123456789" * (size // 10) + b"x" * (size % 10)
    chunk = Chunk(head, b"-" * before + data + b"more", before, before + size)
    assert job_pb2.StreamLogsResponse.FromString(chunk.SerializeToString()) == whole(head, data)
    pushed = Pushed(request_id, chunk)
    message = agent_pb2.PushLogsRequest(request_id=request_id, chunk=whole(head, data))
    assert agent_pb2.PushLogsRequest.FromString(pushed.SerializeToString()) == message
    for raw in (message.SerializeToString(), pushed.SerializeToString()):
        back = Pushed.FromString(raw)
        assert (back.request_id, back.chunk.head, back.chunk.data) == (request_id, head, data)
        assert back.chunk.raw is raw  # nothing of it was copied
    assert as_message(back.chunk) == whole(head, data)


def test_fields_come_in_any_order_and_what_is_not_known_stays():
    head = job_pb2.StreamLogsResponse(cursor=job_pb2.LogCursor(rank=3), skipped=5).SerializeToString()
    unknown = b"\xf8\x07\x05" + b"\xf9\x07" + bytes(8) + b"\xfd\x07" + bytes(4) + b"\xfa\x07\x02hi"
    raw = b"\x12\x03one" + unknown + head + b"\x12\x03two"  # of a field that comes twice the last counts
    chunk = Chunk.FromString(raw)
    assert (chunk.cursor.rank, chunk.skipped, chunk.data) == (3, 5, b"two")
    assert chunk.SerializeToString() == head + unknown + b"\x12\x03two"


def test_what_has_no_data():
    away = job_pb2.StreamLogsResponse(away=job_pb2.LogsAway(rank=1, node="a", reason="gone"))
    chunk = Chunk.FromString(away.SerializeToString())
    assert chunk.HasField("away")
    assert (chunk.away, chunk.data, chunk.SerializeToString()) == (away.away, b"", away.SerializeToString())
    assert Pushed.FromString(b"") == Pushed()
    assert Pushed("a").SerializeToString() == agent_pb2.PushLogsRequest(request_id="a").SerializeToString()
    assert Pushed.FromString(agent_pb2.PushLogsRequest(chunk={}).SerializeToString()).chunk.data == b""


@pytest.mark.parametrize(
    "raw", [b"\x12", b"\x12\x05one", b"\x80", b"\x0b", b"\x09abc", b"\x0a\x02\x08", b"\xff" * 11]
)
def test_what_is_none(raw):
    for read in (Chunk.FromString, Pushed.FromString):
        with pytest.raises((ValueError, DecodeError)):
            read(raw)


def test_cursors_and_lines_look_at_it_where_it_lies():
    raw = whole(
        job_pb2.StreamLogsResponse(cursor=job_pb2.LogCursor(stream=OUT)), b"one\ntwo\nhalf"
    ).SerializeToString()
    cursors, lines = Cursors(), Lines()
    first, again = Chunk.FromString(raw), Chunk.FromString(raw)
    assert cursors.take(first)
    assert first.raw is raw
    assert list(lines.add(first)) == [(0, b"one\ntwo\n")]
    assert not cursors.take(again)
    rest = Chunk(
        job_pb2.StreamLogsResponse(cursor=job_pb2.LogCursor(stream=OUT, offset=8)), b"-half a line\n", 1
    )
    assert cursors.take(rest)
    assert (rest.cursor.offset, rest.data) == (12, b" a line\n")
    assert list(lines.add(rest)) == [(8, b"half a line\n")]
