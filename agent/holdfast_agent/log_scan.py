"""`python -m holdfast_agent.log_scan`: what an agent starts to find metrics in the logs of its workers.

A process of its own, because the patterns are a user's: Python's matcher holds the interpreter while it works, and some
patterns make it work for ever. Here a timer ends it, and after the third time that pattern is let go of.

Commands come over stdin, answers go to stdout, as JSON, one a line. It ends when stdin does.

============================== ======================================================================
``{"watch": DIRECTORY}``       look at the logs of the attempt in this directory from here on
``{"end": DIRECTORY}``         look once more; answered by ``{"done": DIRECTORY}``
``{"slow": NAME, "in": …}``    says that a pattern is let go of
============================== ======================================================================

What is found goes into a page like a heartbeat page, in a file beside the logs, together with the offsets up to which
it was found: whoever comes after a process that was killed neither misses nor counts twice.
"""

import json
import os
import re
import selectors
import struct
import sys
from pathlib import Path
from typing import Any

from holdfast import heartbeat
from holdfast.patterns import TooSlowError, within
from holdfast_agent.log_file import STDERR, STDOUT, LogReader
from holdfast_agent.log_matcher import STEP, Matcher, Page
from holdfast_agent.shim import START
from holdfast_agent.workdir import LOG_PAGE

LOOK_EVERY_S = 0.5
MOST_BYTES = 128 * 1024
MOST_LINES = 1_000
"""Of each log at each look; of a worker that writes more, the newest."""
LOOK_WITHIN_S = 1.0
STRIKES = 3

_OFFSETS = struct.Struct("<qq")
_NAMES = (STDOUT, STDERR)


class Watched:
    """The logs of one attempt."""

    def __init__(self, directory: str) -> None:
        """Raises OSError, ValueError and re.error."""
        self._directory = directory
        patterns = json.loads((Path(directory) / START).read_bytes())["log_metrics"]
        self._matcher = Matcher(patterns)
        self._strikes: dict[str, int] = {}
        self._fd = os.open(Path(directory) / LOG_PAGE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        before = os.pread(self._fd, heartbeat.SIZE + _OFFSETS.size, 0)
        self._page = Page(steps=STEP in patterns, before=before[: heartbeat.SIZE])
        offsets = before[heartbeat.SIZE :]
        found = _OFFSETS.unpack(offsets) if len(offsets) == _OFFSETS.size else (0, 0)
        self._offsets = dict(zip(_NAMES, found, strict=True))

    def look(self, *, last: bool = False) -> str:
        """Find what is new. Returns the name of a pattern that was let go of. Raises OSError."""
        slow, before = "", dict(self._offsets)
        for name in _NAMES:
            try:
                with within(LOOK_WITHIN_S):
                    for found, value in self._matcher.find(self._new_lines(name, last=last)):
                        self._page.note(found, value)
            except TooSlowError:
                guilty = self._matcher.trying
                self._strikes[guilty] = self._strikes.get(guilty, 0) + 1
                if self._strikes[guilty] == STRIKES:
                    self._matcher.drop(guilty)
                    slow = guilty
        if self._offsets != before:
            content = self._page.content() + _OFFSETS.pack(*self._offsets.values())
            os.pwrite(self._fd, content, 0)
        return slow

    def close(self) -> None:
        """Let go of it."""
        os.close(self._fd)

    def _new_lines(self, name: str, *, last: bool) -> list[str]:
        try:
            log = LogReader(self._directory, name)
        except FileNotFoundError:
            return []
        with log:
            offset, end = self._offsets[name], log.held.end
            jumped = end - offset > MOST_BYTES
            at, data = log.read(end - MOST_BYTES if jumped else offset, MOST_BYTES)
        # A progress bar goes back to the start of its line.
        cut = max(data.rfind(b"\n"), data.rfind(b"\r")) + 1
        if last or (not cut and len(data) == MOST_BYTES):
            cut = len(data)
        self._offsets[name] = at + cut
        if jumped:  # into the middle of a line: half a number is another number
            data = data[: data.rfind(b"\n", 0, cut) + 1].partition(b"\n")[2]
        else:
            data = data[:cut]
        return data.decode(errors="replace").splitlines()[-MOST_LINES:]


class _Scan:
    def __init__(self) -> None:
        self._watched: dict[str, Watched] = {}
        self._rest = b""

    def run(self) -> None:
        selector = selectors.DefaultSelector()
        selector.register(sys.stdin.fileno(), selectors.EVENT_READ)
        while True:
            if selector.select(LOOK_EVERY_S if self._watched else None):
                data = os.read(sys.stdin.fileno(), MOST_BYTES)
                if not data:
                    return
                *lines, self._rest = (self._rest + data).split(b"\n")
                for line in lines:
                    self._obey(json.loads(line))
            else:
                for directory in list(self._watched):
                    self._look(directory)

    def _obey(self, command: dict[str, str]) -> None:
        if "watch" in command:
            self._look(command["watch"])
        else:
            directory = command["end"]
            self._look(directory, last=True)
            if directory in self._watched:
                self._watched.pop(directory).close()
            _say({"done": directory})

    def _look(self, directory: str, *, last: bool = False) -> None:
        try:
            if directory not in self._watched:
                self._watched[directory] = Watched(directory)
            if slow := self._watched[directory].look(last=last):
                _say({"slow": slow, "in": directory})
        except (OSError, ValueError, KeyError, re.error) as error:
            _say({"failed": str(error), "in": directory})
            if directory in self._watched:
                self._watched.pop(directory).close()


def _say(what: dict[str, Any]) -> None:
    os.write(sys.stdout.fileno(), json.dumps(what).encode() + b"\n")


if __name__ == "__main__":
    _Scan().run()
