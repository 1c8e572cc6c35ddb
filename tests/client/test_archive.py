"""The archive of logs: what an agent would give, from the storage."""

import gzip
import random

import pytest

from holdfast.archive import RECORD, Archive, Archived
from holdfast.log_cursors import Cursors
from holdfast.storage.api import Bytes
from holdfast.storage.local import LocalStorage
from holdfast.v1 import job_pb2

OUT, ERR = job_pb2.LOG_STREAM_STDOUT, job_pb2.LOG_STREAM_STDERR
LINES = b"".join(b"line %d\n" % n for n in range(50_000))


@pytest.fixture
def storage(tmp_path):
    return LocalStorage(str(tmp_path), "job/logs")


def put(storage, data, *, rank=0, attempt=1, stream="stdout", first=0, times=()):
    place = Archived(rank, attempt, stream, first)
    storage.put(place.times_name, Bytes(gzip.compress(b"".join(RECORD.pack(*each) for each in times))))
    storage.put(place.name, Bytes(gzip.compress(data)))


def read(storage, rank=0, cursors=(), **asked):
    """(attempt, stream) -> what is read, and the chunks."""
    since_ms = asked.pop("since_ms", None)
    request = job_pb2.StreamLogsRequest(job_id="job", **asked)
    if since_ms is not None:
        request.since.FromMilliseconds(since_ms)
    archive = Archive(storage, request, rank, Cursors(cursors))
    found, taken = {}, Cursors(cursors)
    for chunk in archive.chunks():
        if taken.take(chunk):
            key = (chunk.cursor.attempt, chunk.cursor.stream)
            found[key] = found.get(key, b"") + chunk.data
    return found


def test_every_attempt_oldest_first_and_of_the_rank_alone(storage):
    put(storage, b"two\n", attempt=2)
    put(storage, b"oops\n", stream="stderr")
    put(storage, b"one\n")
    put(storage, b"ten\n", attempt=10)
    put(storage, b"other\n", rank=1)
    assert list(read(storage).items()) == [
        ((1, OUT), b"one\n"),
        ((1, ERR), b"oops\n"),
        ((2, OUT), b"two\n"),
        ((10, OUT), b"ten\n"),
    ]
    assert read(storage, attempt=2) == {(2, OUT): b"two\n"}
    assert read(storage, rank=5) == {}


def test_chunks_are_bounded_and_end_with_lines(storage):
    put(storage, LINES)
    request = job_pb2.StreamLogsRequest(job_id="job")
    chunks = list(Archive(storage, request, 0, Cursors()).chunks())
    assert all(len(chunk.data) <= 64 * 1024 and chunk.data.endswith(b"\n") for chunk in chunks)
    assert b"".join(chunk.data for chunk in chunks) == LINES


def test_from_a_place_on(storage):
    put(storage, LINES)
    for offset in (0, 7, 100_003, len(LINES) - 1, len(LINES)):
        cursor = job_pb2.LogCursor(attempt=1, stream=OUT, offset=offset)
        assert read(storage, cursors=[cursor]).get((1, OUT), b"") == LINES[offset:]


def test_what_was_freed_before_is_told_and_offsets_stay(storage):
    put(storage, b"kept\n", first=1_000)
    (chunk,) = Archive(storage, job_pb2.StreamLogsRequest(job_id="job"), 0, Cursors()).chunks()
    assert (chunk.cursor.offset, chunk.skipped, chunk.data) == (1_000, 1_000, b"kept\n")


@pytest.mark.parametrize("tail", [0, 1, 3, 20_000, 49_999, 50_000, 50_001])
def test_the_last_lines(storage, tail):
    put(storage, LINES)
    expected = b"".join(LINES.splitlines(keepends=True)[-tail:]) if tail else b""
    assert read(storage, tail=tail).get((1, OUT), b"") == expected


def test_the_last_lines_of_several_attempts(storage):
    put(storage, b"a\nb\nc\n")
    put(storage, b"d\ne", attempt=2)
    assert read(storage, tail=3) == {(1, OUT): b"c\n", (2, OUT): b"d\ne"}
    assert read(storage, tail=1) == {(2, OUT): b"e"}


def test_since(storage):
    put(storage, b"one\ntwo\nthree\n", times=[(1_000, 0), (61_000, 4), (121_000, 8)])
    assert read(storage, since_ms=500) == {(1, OUT): b"one\ntwo\nthree\n"}
    assert read(storage, since_ms=61_000) == {(1, OUT): b"two\nthree\n"}
    assert read(storage, since_ms=90_000) == {(1, OUT): b"three\n"}
    assert read(storage, since_ms=200_000) == {}


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-20], lambda data: b"nothing of the kind", lambda data: b""]
)
def test_what_is_damaged_is_an_error_that_names_it(storage, damage):
    data = random.Random(1).randbytes(300_000)
    storage.put(Archived(0, 1, "stdout", 0).name, Bytes(damage(gzip.compress(data))))
    with pytest.raises(OSError, match=r"0-1/stdout\.0\.log\.gz in .*job/logs is (damaged|cut off)"):
        read(storage)
