"""What workers wrote, line by line with the rank in front, stdout to stdout and stderr to stderr."""

from __future__ import annotations

import contextlib
import fcntl
import select
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, TextIO

from holdfast.cli.common import coloured, printable
from holdfast.cli.late import job_pb2

if TYPE_CHECKING:
    from holdfast.log_wire import AnyChunk

_COLOURS = (36, 33, 32, 35, 34, 31)
_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")
_PIPE_BYTES = 2**20


class LinePrinter:
    """Prints chunks of logs. A line that is not finished waits for its rest, so that ranks never share one.

    `around` is entered for every print, for whoever else draws on the terminal. What logs have no more, and why, goes
    to stderr.
    """

    def __init__(self, around: Callable[[], AbstractContextManager[None]] = nullcontext) -> None:
        from holdfast.log_text import Lines

        self._around = around
        self._lines = Lines()
        self.away = False
        """Some of what was asked for could not be had."""

    def write(self, chunk: AnyChunk) -> None:
        """Print the lines that a chunk completes."""
        if chunk.HasField("away"):
            self.away = True
            what = f"what rank {chunk.away.rank} wrote on {printable(chunk.away.node)} can't be read"
            self._say(f"{what}: {printable(chunk.away.reason)}")
            return
        at = chunk.cursor
        if chunk.skipped:
            stream = "stderr" if at.stream == job_pb2.LOG_STREAM_STDERR else "stdout"
            self._say(f"[{at.rank}] {_size(chunk.skipped)} of {stream} were freed before they could be read")
        for _, block in self._lines.add(chunk):
            with self._around():
                _print(at.rank, at.stream, block)

    def finish(self) -> None:
        """Print what never got its line end."""
        with self._around():
            for (rank, _, stream), _, rest in self._lines.finish():
                _print(rank, stream, rest)

    def _say(self, sentence: str) -> None:
        with self._around():
            print(f"holdfast: {sentence}", file=sys.stderr, flush=True)


def widen(out: TextIO) -> None:
    """Give the pipe that it is, if it is one, as much room as users may have.

    Then neither its reader nor this process is woken for every 64 KiB, which costs them more than to read and to
    write these.
    """
    with contextlib.suppress(OSError, ValueError, AttributeError):
        if fcntl.fcntl(out, fcntl.F_GETPIPE_SZ) < _PIPE_BYTES:
            fcntl.fcntl(out, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)


def _print(rank: int, stream: int, block: bytes) -> None:
    """Print whole lines, or a piece of one, which becomes a line."""
    out: TextIO = sys.stderr if stream == job_pb2.LOG_STREAM_STDERR else sys.stdout
    head = f"\x1b[{_COLOURS[rank % len(_COLOURS)]}m[{rank}]\x1b[0m " if coloured(out) else f"[{rank}] "
    # All lines at once: what a job writes may be millions.
    if not out.isatty() and block.isascii() and b"\r" not in block:
        raw_head = head.encode()
        with_heads = memoryview(block.replace(b"\n", b"\n" + raw_head))
        if block.endswith(b"\n"):
            _write(out, b"".join((raw_head, with_heads[: -len(raw_head)])))
        else:
            _write(out, b"".join((raw_head, with_heads, b"\n")))
        return
    block = block.removesuffix(b"\n")
    text = block.decode(errors="replace")
    if "\r" in text:
        text = text.removesuffix("\r").replace("\r\n", "\n")
    if out.isatty():
        # Of a progress bar, what it came to.
        text = "\n".join(printable(line.rpartition("\r")[2]) for line in text.split("\n"))
    text = f"{head}{text.replace(chr(10), chr(10) + head)}\n"
    _write(out, text.encode(out.encoding or "utf-8", errors="replace"))


def _write(out: TextIO, data: bytes) -> None:
    """Write all of it at once, past the buffers.

    Where PYTHONUNBUFFERED is set there are none, and whoever writes text loses what a write leaves over that was
    interrupted, as by Ctrl-Z or a debugger.
    """
    buffer = getattr(out, "buffer", None)
    if buffer is None:
        out.write(data.decode(out.encoding or "utf-8"))
        return
    out.flush()
    raw = getattr(buffer, "raw", buffer)
    left = memoryview(data)
    while left:
        done = raw.write(left)
        if done is None:  # it does not block, and is full
            select.select([], [raw], [])
        else:
            left = left[done:]


def _size(count: int) -> str:
    size, unit = float(count), 0
    while size >= 1024 and unit < len(_UNITS) - 1:
        size, unit = size / 1024, unit + 1
    return f"{size:.0f} {_UNITS[unit]}" if not unit else f"{size:.1f} {_UNITS[unit]}"
