# ruff: noqa: F401, F811  fixtures are imported by name
"""`holdfast job logs`: lines with their rank in front, and nothing that steers a terminal."""

import contextlib
import fcntl
import gzip
import io
import os
import time

import pytest

from holdfast.archive import Archived
from holdfast.cli.common import printable
from holdfast.cli.log_lines import LinePrinter, widen
from holdfast.log_text import LONGEST_LINE
from holdfast.storage.api import Bytes
from holdfast.storage.local import LocalStorage
from holdfast.v1 import job_pb2
from tests.client.scripted import coordinator, holdfast, make_job

JOB = "k7m2p9xq4w"
OUT, ERR = job_pb2.LOG_STREAM_STDOUT, job_pb2.LOG_STREAM_STDERR


class Terminal(io.StringIO):
    def isatty(self):
        return True


def on_terminal(data):
    """What a terminal gets."""
    with contextlib.redirect_stdout(Terminal()) as terminal:
        LinePrinter().write(chunk(data))
    return terminal.getvalue()


def chunk(data, rank=0, attempt=1, stream=OUT, offset=0):
    at = job_pb2.LogCursor(rank=rank, attempt=attempt, stream=stream, offset=offset)
    return job_pb2.StreamLogsResponse(cursor=at, data=data)


def test_every_line_has_its_rank_and_its_stream(coordinator, holdfast):
    coordinator.add_job(make_job())
    coordinator.log = [
        chunk(b"one\ntwo\n"),
        chunk(b"oops\n", rank=1, stream=ERR),
        chunk(b"\n", offset=8),
        chunk(b"end\n", rank=11),
    ]
    result = holdfast("job", "logs", JOB)
    assert result.stdout == "[0] one\n[0] two\n[0] \n[11] end\n"
    assert result.stderr == "[1] oops\n"


def test_what_is_asked_for(coordinator, holdfast):
    coordinator.add_job(make_job())
    holdfast("job", "logs", JOB, "--follow", "--rank", "3", "--rank", "0", "--attempt", "2")
    holdfast("job", "logs", JOB)
    narrow, all_of_it = coordinator.asked("StreamLogs")
    assert narrow == job_pb2.StreamLogsRequest(job_id=JOB, ranks=[3, 0], attempt=2, follow=True)
    assert all_of_it == job_pb2.StreamLogsRequest(job_id=JOB)


def test_ranks_never_share_a_line(capsys):
    printer = LinePrinter()
    printer.write(chunk(b"first "))
    printer.write(chunk(b"other\n", rank=1))
    printer.write(chunk(b"errors\n", stream=ERR))
    printer.write(chunk(b"again\n", attempt=2))
    printer.write(chunk(b"half\nand a rest", offset=6))
    printer.finish()
    assert capsys.readouterr() == (
        "[1] other\n[0] again\n[0] first half\n[0] and a rest\n",
        "[0] errors\n",
    )


def test_what_is_no_text_is_shown_all_the_same(capsys):
    printer = LinePrinter()
    printer.write(chunk(b"a\xff\xe2\x82"))
    printer.write(chunk(b"\xac\r\n", offset=4))
    assert capsys.readouterr().out == "[0] a\ufffd\u20ac\n"


def test_a_line_without_an_end_does_not_grow_for_ever(capsys):
    printer = LinePrinter()
    printer.write(chunk(b"x" * LONGEST_LINE))
    assert capsys.readouterr().out == ""
    printer.write(chunk(b"x", offset=LONGEST_LINE))
    assert capsys.readouterr().out == f"[0] {'x' * LONGEST_LINE}\n"
    printer.write(chunk(b"yz\n", offset=LONGEST_LINE + 1))
    assert capsys.readouterr().out == "[0] xyz\n"


def test_a_file_gets_the_bytes_as_they_are(capsys):
    LinePrinter().write(chunk(b"\x1b[31mred\x1b[0m\n"))
    assert capsys.readouterr().out == "[0] \x1b[31mred\x1b[0m\n"


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (b"\x1b[31mred\x1b[0m and \x1b[1;32mgreen\x1b[m", "red and green"),
        (b"\x1b]0;title\x07text", "text"),
        (b"\x1b[2J\x1b[Hcleared", "cleared"),
        ("\x1bcreset \x9b31m\x08\x7f".encode(), "creset 31m"),
        ("\u202eesrever".encode(), "esrever"),
        (b"10%\r50%\r100%", "100%"),
        (b"tab\tstays", "tab\tstays"),
    ],
)
def test_a_terminal_is_not_steered(monkeypatch, raw, shown):
    monkeypatch.delenv("NO_COLOR", raising=False)
    head, _, text = on_terminal(raw + b"\n").partition(" ")
    assert head == "\x1b[36m[0]\x1b[0m"
    assert text == f"{shown}\n"


def test_no_colour_when_told_so(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    assert on_terminal(b"x\n") == "[0] x\n"


def test_what_steers_a_terminal_is_taken_out():
    for nasty in ("\x1b[2J", "\x1b]8;;http://x\x1b\\", "\x9b", "\x07", "\x00", "\r", "\n", "\u202e", "\x7f"):
        assert printable(f"a{nasty}b") == "ab"
    assert printable("naïve\t✓") == "naïve\t✓"


class TestOptions:
    def test_they_reach_the_coordinator(self, coordinator, holdfast):
        coordinator.add_job(make_job())
        options = ("--since", "2026-03-01T09:30:00+01:00", "--tail", "0", "--rank", "0,3", "--rank", "3,5")
        holdfast("job", "logs", JOB, *options)
        (asked,) = coordinator.asked("StreamLogs")
        expected = job_pb2.StreamLogsRequest(job_id=JOB, ranks=[0, 3, 5], tail=0)
        expected.since.FromJsonString("2026-03-01T08:30:00Z")
        assert asked == expected

    def test_since_a_while(self, coordinator, holdfast):
        coordinator.add_job(make_job())
        before = time.time()
        holdfast("job", "logs", JOB, "--since", "5m")
        (asked,) = coordinator.asked("StreamLogs")
        assert before - 300 <= asked.since.ToMicroseconds() / 1e6 <= time.time() - 300
        assert not asked.HasField("tail")

    @pytest.mark.parametrize(
        ("option", "value", "why"),
        [
            ("--rank", "0,x", '"x" is no rank; write e.g. 0 or 0,3'),
            ("--rank", "-1", '"-1" is no rank'),
            ("--since", "yesterday", '"yesterday" is neither a duration nor a time; write e.g. 5m'),
            ("--grep", "(", '"(" is no regular expression: missing ), unterminated subpattern at position 0'),
            ("--tail", "-1", "-1 is not in the range"),
        ],
    )
    def test_what_they_cannot_be(self, holdfast, option, value, why):
        result = holdfast("job", "logs", JOB, option, value)
        assert result.exit_code == 2
        assert why in result.stderr

    def test_grep_prints_lines_that_match(self, coordinator, holdfast):
        coordinator.add_job(make_job())
        coordinator.log = [chunk(b"loss 1\nacc 2\nlo"), chunk(b"ss 3", offset=15)]
        assert holdfast("job", "logs", JOB, "--grep", "^loss").stdout == "[0] loss 1\n[0] loss 3\n"

    def test_a_pattern_that_never_ends_is_ended(self, coordinator, holdfast, monkeypatch):
        monkeypatch.setattr("holdfast.cli.logs.MATCH_WITHIN_S", 0.1)
        coordinator.add_job(make_job())
        coordinator.log = [chunk(b"a" * 64 + b"!\n")]
        result = holdfast("job", "logs", JOB, "--grep", "(a+)+$")
        assert result.exit_code == 2
        assert '--grep: "(a+)+$" takes more than 0.1 s on a piece of the log' in result.stderr


def test_what_was_freed_is_told(capsys):
    printer = LinePrinter()
    for skipped in (5, 3 * 2**20):
        freed = chunk(b"kept\n", offset=skipped + 100)
        freed.skipped = skipped
        printer.write(freed)
    assert capsys.readouterr().err == (
        "holdfast: [0] 5 bytes of stdout were freed before they could be read\n"
        "holdfast: [0] 3.0 MiB of stdout were freed before they could be read\n"
    )


def away(rank=0, node="node-a"):
    told = job_pb2.LogsAway(rank=rank, node=node, reason="its agent is not connected")
    return job_pb2.StreamLogsResponse(away=told)


def test_what_can_not_be_had_is_told_and_not_passed_over(coordinator, holdfast):
    coordinator.add_job(make_job())
    coordinator.log = [away(), chunk(b"of another\n", rank=1)]
    result = holdfast("job", "logs", JOB)
    assert result.exit_code == 3
    assert result.stdout == "[1] of another\n"
    assert result.stderr == (
        "holdfast: what rank 0 wrote on node-a can't be read: its agent is not connected, and the job has no "
        "checkpoint_uri by which to find an archive\n"
    )


def test_the_archive_has_what_a_node_has_not_and_nothing_comes_twice(coordinator, holdfast, tmp_path):
    storage = LocalStorage(str(tmp_path), f"{JOB}/logs")
    for attempt, data in ((1, b"one\n"), (2, b"two\nthree\n")):
        storage.put(Archived(0, attempt, "stdout", 0).name, Bytes(gzip.compress(data)))
    job = make_job()
    job.spec.checkpoint_uri = str(tmp_path)
    coordinator.add_job(job)
    coordinator.log = [away(), chunk(b"two\nthree\n", attempt=2)]
    result = holdfast("job", "logs", JOB)
    assert (result.stdout, result.stderr, result.exit_code) == ("[0] one\n[0] two\n[0] three\n", "", 0)


@pytest.mark.parametrize(("attempt", "missing"), [(0, True), (2, True), (1, False), (3, False), (4, False)])
def test_an_attempt_that_is_nowhere_is_told(coordinator, holdfast, tmp_path, attempt, missing):
    """It ran where nobody is any more, and was not archived before; the rank has moved on since."""
    storage = LocalStorage(str(tmp_path), f"{JOB}/logs")
    storage.put(Archived(0, 1, "stdout", 0).name, Bytes(gzip.compress(b"one\n")))
    job = make_job()
    job.spec.checkpoint_uri = str(tmp_path)
    worker = next(worker for worker in job.workers if worker.rank == 0)
    worker.attempt, worker.node = 4, "node-b"
    coordinator.add_job(job)
    coordinator.log = [away(), *(chunk(b"of node b\n", attempt=n) for n in (3, 4) if attempt in (0, n))]
    result = holdfast("job", "logs", JOB, "--attempt", str(attempt))
    assert result.exit_code == (3 if missing else 0)
    assert result.stderr == missing * (
        "holdfast: what rank 0 wrote on node-a can't be read: its agent is not connected, and of attempt 2 nothing is "
        "in the archive or on another node\n"
    )


def test_an_archive_that_is_damaged_is_told(coordinator, holdfast, tmp_path):
    LocalStorage(str(tmp_path), f"{JOB}/logs").put(Archived(0, 1, "stdout", 0).name, Bytes(b"no"))
    job = make_job()
    job.spec.checkpoint_uri = str(tmp_path)
    coordinator.add_job(job)
    coordinator.log = [away()]
    result = holdfast("job", "logs", JOB)
    assert result.exit_code == 3
    assert "and its archive can't be read: 0-1/stdout.0.log.gz in " in result.stderr


def test_a_write_that_is_cut_short_is_gone_on_with(monkeypatch):
    """As where PYTHONUNBUFFERED is set, and somebody presses Ctrl-Z."""

    class Short(io.BytesIO):
        def write(self, data):
            return super().write(bytes(data[:1_000]))

    written = Short()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, write_through=True))
    LinePrinter().write(chunk(b"a line of the log\n" * 3_000))
    assert written.getvalue() == b"[0] a line of the log\n" * 3_000
    LinePrinter().write(chunk("naïve\n".encode() * 1_000))
    assert written.getvalue().endswith("[0] naïve\n".encode() * 1_000)


def test_a_pipe_is_given_room_and_nothing_else_is_touched(tmp_path):
    readable, writable = os.pipe()
    with open(readable), open(writable, "w") as pipe:
        widen(pipe)
        assert fcntl.fcntl(pipe, fcntl.F_GETPIPE_SZ) > 64 * 1024
    with open(tmp_path / "file", "w") as file:
        widen(file)
    widen(io.StringIO())
