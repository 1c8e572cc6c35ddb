"""Lines out of chunks, whatever the cuts; cursors that take every byte once."""

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.log_cursors import Cursors
from holdfast.log_text import LONGEST_LINE, Filter, Lines
from holdfast.v1 import job_pb2

OUT, ERR = job_pb2.LOG_STREAM_STDOUT, job_pb2.LOG_STREAM_STDERR


def chunk(data, offset, *, rank=0, attempt=1, stream=OUT, skipped=0):
    at = job_pb2.LogCursor(rank=rank, attempt=attempt, stream=stream, offset=offset)
    return job_pb2.StreamLogsResponse(cursor=at, data=data, skipped=skipped)


def chunks_of(data, cuts):
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    for start, end in itertools.pairwise(places):
        yield chunk(data[start:end], start)


def pieces(data):
    """The lines of data, of which those that are too long are cut."""
    found = []
    *lines, rest = data.split(b"\n")
    for line in [*(each + b"\n" for each in lines), *([rest] if rest else [])]:
        while len(line.removesuffix(b"\n")) > LONGEST_LINE:
            found.append(line[:LONGEST_LINE])
            line = line[LONGEST_LINE:]
        found.append(line)
    return found


def text(lengths):
    return b"\n".join(bytes([97 + n % 26]) * length for n, length in enumerate(lengths))


LENGTHS = st.lists(
    st.one_of(st.integers(0, 40), st.integers(LONGEST_LINE - 2, 2 * LONGEST_LINE + 2)), max_size=6
)
CUTS = st.lists(st.integers(0, 2**20), max_size=8)


class TestLines:
    @given(LENGTHS, CUTS)
    def test_the_same_lines_whatever_the_cuts(self, lengths, cuts):
        data, lines, found = text(lengths), Lines(), []
        for each in chunks_of(data, cuts):
            for offset, block in lines.add(each):
                assert data[offset : offset + len(block)] == block
                assert len(block) <= LONGEST_LINE + 1
                found += pieces(block)
        found += [rest for _, _, rest in lines.finish()]
        assert found == pieces(data)

    def test_what_was_freed_ends_a_line(self):
        lines = Lines()
        assert list(lines.add(chunk(b"half", 0))) == []
        assert list(lines.add(chunk(b"next\n", 100, skipped=96))) == [(0, b"half"), (100, b"next\n")]


class TestFilter:
    @given(LENGTHS, CUTS)
    def test_what_passes_stands_where_its_cursor_says(self, lengths, cuts):
        data, wanted, found = text(lengths), Filter("[ac]"), []
        for each in [*(f for c in chunks_of(data, cuts) for f in wanted.add(c)), *wanted.finish()]:
            at = each.cursor.offset
            assert data[at : at + len(each.data)] == each.data
            found += pieces(each.data)
        assert b"".join(found) == b"".join(line for line in pieces(data) if re.search(rb"[ac]", line))

    def test_anchors_and_carriage_returns(self):
        wanted = Filter("^b$")
        assert [c.data for c in wanted.add(chunk(b"a\nb\r\nab\nb\n", 0))] == [b"b\r\n", b"b\n"]

    def test_what_is_freed_or_away_passes(self):
        wanted = Filter("x")
        (freed,) = wanted.add(chunk(b"no\n", 10, skipped=5))
        assert (freed.skipped, freed.data) == (5, b"")
        away = job_pb2.StreamLogsResponse(away=job_pb2.LogsAway(rank=1, node="a", reason="gone"))
        assert list(wanted.add(away)) == [away]


class TestCursors:
    @given(
        st.binary(min_size=1, max_size=200),
        st.lists(st.tuples(st.integers(0, 200), st.integers(0, 60)), max_size=20),
    )
    def test_every_byte_once_and_gaps_told(self, data, sent):
        """Whatever an agent pushes twice, and in whatever pieces; pieces never begin behind what was pushed."""
        cursors, got, pushed = Cursors(), b"", 0
        for start, length in sent:
            start = min(start, pushed)
            piece = chunk(data[start : start + length], start)
            pushed = max(pushed, min(len(data), start + length))
            if cursors.take(piece):
                assert piece.cursor.offset == len(got)
                assert not piece.skipped
                got += piece.data
        assert got == data[:pushed]

    def test_a_gap_is_what_is_missing_for_this_reader(self):
        cursors = Cursors([job_pb2.LogCursor(attempt=1, stream=OUT, offset=30)])
        piece = chunk(b"kept\n", 100, skipped=100)
        assert cursors.take(piece)
        assert piece.skipped == 70

    def test_logs_do_not_mix(self):
        cursors = Cursors()
        for place in ({}, {"rank": 1}, {"attempt": 2}, {"stream": ERR}):
            assert cursors.take(chunk(b"x", 0, **place))
            assert not cursors.take(chunk(b"x", 0, **place))
        assert len(cursors.all()) == 4
        assert len(cursors.of(0)) == 3
        assert (cursors.first_attempt(0), cursors.first_attempt(7)) == (1, 0)

    @pytest.mark.parametrize("again", [b"", b"xx"])
    def test_the_begin_of_a_log_is_no_repetition(self, again):
        cursors = Cursors()
        assert cursors.take(chunk(b"", 50))
        assert cursors.take(chunk(again, 50))
        assert cursors.offset(0, 1, OUT) == 50 + len(again)
