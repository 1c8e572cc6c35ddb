"""The last lines of a worker's output, and the one among them that matters. PURE but for reading the file."""

import os
import re
from pathlib import Path

MOST_LINES = 50
MOST_BYTES = 8_192
LONGEST_LINE = 1_000
READ_BYTES = 64 * 1024

_ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_TRACEBACK = "Traceback (most recent call last):"
_SYNTAX = ("SyntaxError:", "IndentationError:", "TabError:")
_PLACE = re.compile(r'File "(.+)", line (\d+)$')
_FATAL = ("Fatal Python error:", "terminate called after")


def last_lines(*logs: Path) -> list[str]:
    """The last lines of the first of these files that has any: at most 50, and 8 KiB; without control characters."""
    for log in logs:
        lines = clean(_end_of(log))
        if any(line.strip() for line in lines):
            return lines
    return []


def _end_of(log: Path) -> bytes:
    try:
        fd = os.open(log, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        start = max(0, os.fstat(fd).st_size - READ_BYTES)
        return os.pread(fd, READ_BYTES, start)
    except OSError:
        return b""
    finally:
        os.close(fd)


def clean(output: bytes) -> list[str]:
    """Make lines of the end of an output as a terminal would show them: of a progress bar its last state."""
    lines: list[str] = []
    room = MOST_BYTES
    for raw in reversed(output.decode(errors="replace").split("\n")):
        text = _ESCAPE.sub("", raw).rstrip("\r").rpartition("\r")[2]
        line = _CONTROL.sub("", text)[:LONGEST_LINE].rstrip()
        if not line and not lines:
            continue  # what is empty at the very end
        room -= len(line.encode()) + 1
        if room < 0 or len(lines) == MOST_LINES:
            break
        lines.append(line)
    return lines[::-1]


def line_that_matters(lines: list[str], *, signalled: bool) -> str:
    """What a reader looks for: the exception of the last traceback, what a dying interpreter says, or the last line.

    A worker that a signal ended did not end by an exception, even if it had reported one before.
    """
    for at in range(len(lines) - 1, -1, -1):
        if signalled and lines[at].lstrip().startswith(_FATAL):
            return lines[at].strip()
        if not signalled and lines[at].endswith(_TRACEBACK):
            prefix = lines[at].removesuffix(_TRACEBACK)  # some loggers put one before every line
            for line in lines[at + 1 :]:
                said = line.removeprefix(prefix)
                if said and not said[0].isspace() and not said.startswith(("^", "|")):
                    return _placed(said.strip(), lines)
    return _placed(next((line.strip() for line in reversed(lines) if line.strip()), ""), lines)


def _placed(line: str, lines: list[str]) -> str:
    """Of a file that is no Python, which and where: the error's own line has it not."""
    if not line.startswith(_SYNTAX):
        return line
    before = [each.strip() for each in lines]
    before = before[: next(at for at, each in enumerate(before) if each.endswith(line))]
    found = next((place for each in reversed(before) if (place := _PLACE.search(each))), None)
    return f"{line} ({found[1]}, line {found[2]})" if found else line
