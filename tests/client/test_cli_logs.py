# ruff: noqa: F401, F811  fixtures are imported by name
"""`holdfast job logs`: lines with their rank in front, and nothing that steers a terminal."""

import contextlib
import io

import pytest

from holdfast.cli.common import printable
from holdfast.cli.log_lines import LinePrinter
from holdfast.log_text import LONGEST_LINE
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
