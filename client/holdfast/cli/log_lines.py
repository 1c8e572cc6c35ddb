"""What workers wrote, line by line with the rank in front, stdout to stdout and stderr to stderr."""

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TextIO

from holdfast.cli.common import coloured, printable
from holdfast.v1 import job_pb2

LONGEST_LINE = 64 * 1024
"""A line that is longer is cut: a progress bar may never end its line."""

_COLOURS = (36, 33, 32, 35, 34, 31)


class LinePrinter:
    """Prints chunks of logs. A line that is not finished waits for its rest, so that ranks never share one.

    `around` is entered for every print, for whoever else draws on the terminal.
    """

    def __init__(self, around: Callable[[], AbstractContextManager[None]] = nullcontext) -> None:
        self._around = around
        self._rests: dict[tuple[int, int, int], bytes] = {}

    def write(self, chunk: job_pb2.StreamLogsResponse) -> None:
        """Print the lines that a chunk completes."""
        at = chunk.cursor
        place = (at.rank, at.attempt, at.stream)
        *lines, rest = (self._rests.pop(place, b"") + chunk.data).split(b"\n")
        if len(rest) > LONGEST_LINE:
            lines, rest = [*lines, rest], b""
        if rest:
            self._rests[place] = rest
        if lines:
            with self._around():
                self._print(at.rank, at.stream, lines)

    def finish(self) -> None:
        """Print what never got its line end."""
        with self._around():
            for (rank, _, stream), rest in self._rests.items():
                self._print(rank, stream, [rest])
        self._rests.clear()

    @staticmethod
    def _print(rank: int, stream: int, lines: list[bytes]) -> None:
        out: TextIO = sys.stderr if stream == job_pb2.LOG_STREAM_STDERR else sys.stdout
        head = f"\x1b[{_COLOURS[rank % len(_COLOURS)]}m[{rank}]\x1b[0m" if coloured(out) else f"[{rank}]"
        terminal = out.isatty()
        for line in lines:
            text = line.decode(errors="replace").removesuffix("\r")
            if terminal:
                text = printable(text.rpartition("\r")[2])  # of a progress bar, what it came to
            out.write(f"{head} {text}\n")
        out.flush()
