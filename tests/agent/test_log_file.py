"""A log keeps its offsets whatever is freed: no byte twice, none that was not written, and none missed untold."""

import errno
import os
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast_agent import log_file
from holdfast_agent.log_file import CHUNK, LEAST_BYTES, STDERR, STDOUT, Log, LogReader, WorkerLogs, measure

BLOCK = 4096
HOLES = [True, False]


def without_holes(monkeypatch):
    """A file system that makes none."""

    def refuse(fd, start, end):
        raise OSError(errno.EOPNOTSUPP, "no holes here")

    monkeypatch.setattr(Log, "_punch", staticmethod(refuse))


@pytest.fixture(params=HOLES, ids=["holes", "no holes"])
def holes(request, monkeypatch):
    if not request.param:
        without_holes(monkeypatch)
    return request.param


def log_of(path, data=b"", *, freed=0):
    log = Log(str(path), STDOUT, make=True)
    assert log.append(data) == 0
    log.free(freed)
    return log


def everything(path, offset=0):
    """All that a reader gets from an offset on: (offset, data) pieces."""
    found = []
    with LogReader(str(path), STDOUT) as reader:
        while piece := reader.read(offset)[1]:
            at, piece = reader.read(offset)
            found.append((at, piece))
            offset = at + len(piece)
    return found


class TestFreeing:
    def test_what_is_kept_keeps_its_place(self, tmp_path, holes):
        lines = b"".join(b"%07d\n" % n for n in range(10_000))
        log = log_of(tmp_path, lines, freed=40_000)
        assert (log.kept, log.end) == measure(str(tmp_path), STDOUT) == (36_864, 80_000)
        pieces = everything(tmp_path)
        assert pieces[0][0] == 36_864 + 8  # of the line at the edge nobody can say that it is whole
        for at, piece in pieces:
            assert lines[at : at + len(piece)] == piece
        assert pieces[-1][0] + len(pieces[-1][1]) == 80_000

    def test_a_reader_that_is_there_already_misses_nothing(self, tmp_path, holes):
        log_of(tmp_path, b"x\n" * 20_000, freed=8 * 1024)
        at, piece = everything(tmp_path, offset=8 * 1024)[0]
        assert (at, piece[:2]) == (8 * 1024, b"x\n")

    def test_the_disk_gets_its_blocks_back(self, tmp_path):
        log = log_of(tmp_path, os.urandom(1_000_000))
        before = os.stat(tmp_path / STDOUT)
        log.free(900_000)
        after = os.stat(tmp_path / STDOUT)
        assert after.st_size == before.st_size
        assert after.st_blocks * 512 < 200_000

    def test_also_where_there_are_no_holes(self, tmp_path, monkeypatch):
        without_holes(monkeypatch)
        log = log_of(tmp_path, os.urandom(1_000_000), freed=900_000)
        assert os.stat(tmp_path / STDOUT).st_size < 200_000
        log.append(b"more\n")
        assert everything(tmp_path, offset=1_000_000) == [(1_000_000, b"more\n")]

    def test_all_of_it(self, tmp_path, holes):
        log = log_of(tmp_path, b"line\n" * 100)
        log.free(1_000_000)
        assert measure(str(tmp_path), STDOUT) == (500, 500)
        log.append(b"next\n")
        assert everything(tmp_path, offset=500) == [(500, b"next\n")]

    def test_by_whoever_opens_it_next(self, tmp_path, holes):
        """The agent goes on where the shim was."""
        data = os.urandom(100_000)
        log_of(tmp_path, data, freed=20_000).close()
        log = Log(str(tmp_path), STDOUT)
        assert log.end == 100_000
        log.free(60_000)
        assert log.kept > 50_000
        joined = everything(tmp_path, offset=log.kept)
        assert b"".join(piece for _, piece in joined) == data[log.kept :]

    def test_a_line_without_an_end_goes_on_where_it_is_kept(self, tmp_path, holes):
        log = log_of(tmp_path, b"x" * 300_000, freed=100_000)
        assert everything(tmp_path)[0] == (log.kept, b"x" * CHUNK)

    @pytest.mark.parametrize("holes_there", HOLES)
    @given(
        steps=st.lists(
            st.one_of(
                st.tuples(st.just("write"), st.binary(max_size=9_000)),
                st.tuples(st.just("lines"), st.integers(0, 900)),
                st.tuples(st.just("free"), st.integers(0, 60_000)),
                st.tuples(st.just("read"), st.integers(0, 2)),
                st.tuples(st.just("reopen"), st.none()),
            ),
            max_size=30,
        )
    )
    def test_offsets_are_for_ever(self, tmp_path_factory, holes_there, steps):
        path = tmp_path_factory.mktemp("log")
        written = bytearray()
        cursors = [0, 0, 0]
        with pytest.MonkeyPatch.context() as monkeypatch:
            if not holes_there:
                without_holes(monkeypatch)
            log = Log(str(path), STDOUT, make=True)
            for kind, value in steps:
                match kind:
                    case "write" | "lines":
                        data = value if kind == "write" else b"12345678\n" * value
                        assert log.append(data) == 0
                        written += data
                    case "free":
                        log.free(value)
                    case "reopen":
                        log.close()
                        log = Log(str(path), STDOUT)
                    case "read":
                        cursors[value] = self.read_on(path, written, cursors[value], log.kept)
                assert log.end == len(written)
            for cursor in cursors:
                self.read_on(path, written, cursor, log.kept)
            log.close()

    @staticmethod
    def read_on(path, written, cursor, kept):
        """Read to the end: what comes is what was written there, and only what is freed is passed over."""
        with LogReader(str(path), STDOUT) as reader:
            while True:
                at, data = reader.read(cursor)
                assert data == written[at : at + len(data)]
                assert at >= cursor
                if at > cursor:  # skipped up to the first whole line that is kept
                    assert cursor < kept <= at
                    assert at == kept or written[at - 1 : at] == b"\n"
                    assert b"\n" not in written[kept : max(kept, at - 1)]
                if not data:
                    assert at == len(written)
                    return at
                cursor = at + len(data)


class TestBounds:
    @pytest.mark.parametrize("most", [300_000, 1_000_000])
    def test_both_logs_together_stay_below(self, tmp_path, holes, most):
        logs = WorkerLogs(str(tmp_path), most)
        for n in range(200):
            logs.append(STDOUT, b"%09d\n" % n * 1_000)
            held = sum(measure(str(tmp_path), name).size for name in (STDOUT, STDERR))
            assert held <= most
        assert held > most // 4

    def test_many_lines_of_progress_do_not_push_out_the_few_of_an_error(self, tmp_path, holes):
        logs = WorkerLogs(str(tmp_path), LEAST_BYTES)
        logs.append(STDERR, b"the cause\n")
        for _ in range(100):
            logs.append(STDOUT, b"progress\n" * 5_000)
        assert measure(str(tmp_path), STDERR) == (0, 10)

    def test_where_nothing_can_be_freed_lines_are_taken_all_the_same(self, tmp_path, monkeypatch):
        calls = []

        def refuse(self, before):
            calls.append(before)
            raise OSError(errno.EIO, "broken")

        monkeypatch.setattr(Log, "free", refuse)
        logs = WorkerLogs(str(tmp_path), LEAST_BYTES)
        for _ in range(100):
            assert logs.append(STDOUT, b"x" * 10_000) == 0
        assert measure(str(tmp_path), STDOUT) == (0, 1_000_000)
        assert len(calls) < 60

    def test_a_full_disk_costs_lines(self, tmp_path, monkeypatch):
        logs = WorkerLogs(str(tmp_path), LEAST_BYTES)
        monkeypatch.setattr(log_file.os, "write", lambda fd, data: (_ for _ in ()).throw(OSError(28, "full")))
        assert logs.append(STDOUT, b"lost") == 4


class TestTails:
    @pytest.mark.parametrize(
        ("data", "lines", "expected"),
        [
            (b"", 3, b""),
            (b"a\nb\nc\n", 2, b"b\nc\n"),
            (b"a\nb\nc", 2, b"b\nc"),
            (b"a\nb\nc\n", 3, b"a\nb\nc\n"),
            (b"a\nb\nc\n", 9, b"a\nb\nc\n"),
            (b"a\nb\nc\n", 0, b""),
            (b"\n\n\n", 2, b"\n\n"),
            (b"unfinished", 1, b"unfinished"),
        ],
    )
    def test_the_last_lines(self, tmp_path, data, lines, expected):
        log_of(tmp_path, data)
        with LogReader(str(tmp_path), STDOUT) as reader:
            start, found = reader.last_lines(lines)
        assert data[start:] == expected
        assert found == len(expected.splitlines())

    @given(st.lists(st.integers(0, 3 * CHUNK // 2), max_size=8), st.booleans(), st.integers(0, 10))
    def test_as_if_all_had_been_read(self, tmp_path_factory, lengths, ended, lines):
        path = tmp_path_factory.mktemp("log")
        data = b"\n".join(b"x" * length for length in lengths) + (b"\n" if ended and lengths else b"")
        log_of(path, data).close()
        with LogReader(str(path), STDOUT) as reader:
            start, found = reader.last_lines(lines)
        expected = data.splitlines(keepends=True)[-lines:] if lines else []
        if len(data) - start < lines * CHUNK:
            assert data[start:].splitlines(keepends=True) == expected
            assert found == len(expected)
        else:  # lines that are too long are counted by their pieces
            assert len(data) - start == lines * CHUNK

    def test_not_what_is_freed(self, tmp_path, holes):
        log = log_of(tmp_path, b"x\n" * 10_000, freed=16_384)
        with LogReader(str(tmp_path), STDOUT) as reader:
            assert reader.last_lines(9_000) == (log.kept, (20_000 - log.kept) // 2)


class TestTimes:
    @pytest.fixture
    def clock(self, monkeypatch):
        """A clock that a test sets: (monotonic seconds, wall clock seconds)."""
        clock = [1_000.0, 500_000.0]
        monkeypatch.setattr(log_file.time, "monotonic", lambda: clock[0])
        monkeypatch.setattr(log_file.time, "time_ns", lambda: int(clock[1] * 1e9))
        return clock

    def since(self, path, at_s):
        with LogReader(str(path), STDOUT) as reader:
            return reader.since(int(at_s * 1_000))

    def test_exact_to_a_second_and_never_too_late(self, tmp_path, clock):
        log = Log(str(tmp_path), STDOUT, make=True)
        written = []
        for n in range(200):
            written.append((clock[1], log.end))
            log.append(b"line %d\n" % n)
            step = 0.3 if n % 10 else 37.0
            clock[0] += step
            clock[1] += step
        for at, offset in written:
            found = self.since(tmp_path, at)
            assert found <= offset
            assert all(when > at - 1.001 for when, place in written if place >= found)
        assert self.since(tmp_path, clock[1] + 2) == log.end
        assert self.since(tmp_path, 0) == 0

    def test_a_clock_that_is_set_back_an_hour(self, tmp_path, clock):
        log = Log(str(tmp_path), STDOUT, make=True)
        log.append(b"before\n")
        clock[0] += 5
        clock[1] -= 3600
        log.append(b"after\n")
        assert self.since(tmp_path, clock[1] - 1) == 0  # more than was asked for, and nothing less
        clock[0] += 3700
        clock[1] += 3700
        log.append(b"later\n")
        assert self.since(tmp_path, clock[1] - 1) == 13

    def test_a_line_that_was_begun_before_is_shown_whole(self, tmp_path, clock):
        log = Log(str(tmp_path), STDOUT, make=True)
        log.append(b"whole\nbeg")
        clock[0] += 60
        clock[1] += 60
        log.append(b"un\n")
        assert self.since(tmp_path, clock[1]) == 6

    def test_the_index_is_freed_with_the_log(self, tmp_path, clock):
        log = Log(str(tmp_path), STDOUT, make=True)
        for _ in range(2_000):
            log.append(b"x" * 499 + b"\n")
            clock[0] += 1
            clock[1] += 1
        log.free(900_000)
        index = os.stat(tmp_path / "stdout.index")
        assert index.st_size == 64 + 2_000 * 16
        assert index.st_blocks * 512 < index.st_size / 2
        at = clock[1] - 100
        assert 0 <= 950_000 - self.since(tmp_path, at) <= 1_000
        assert self.since(tmp_path, 0) <= log.kept

    def test_costs_a_record_a_second_at_most(self, tmp_path):
        log = Log(str(tmp_path), STDOUT, make=True)
        began = time.monotonic()
        for _ in range(1_000):
            log.append(b"line\n")
        assert os.stat(tmp_path / "stdout.index").st_size <= 64 + 16 * (2 + time.monotonic() - began)
