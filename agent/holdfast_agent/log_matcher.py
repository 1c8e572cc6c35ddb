"""Metrics and steps out of lines of a log. PURE but for the page of memory that they are noted in."""

import re
from collections.abc import Iterable, Iterator, Mapping

from holdfast import heartbeat

LONGEST_LINE = 1_000
"""Characters of a line that are looked at."""
STEP = "step"


class Matcher:
    """Finds what regular expressions with one group name."""

    def __init__(self, patterns: Mapping[str, str]) -> None:
        """Raises re.error."""
        # The step comes last: the metrics of its line are its own.
        names = sorted(patterns, key=lambda name: (name == STEP, name))
        self._patterns = {name: re.compile(patterns[name]) for name in names}
        self.trying = ""
        """The name whose pattern is being matched."""

    def find(self, lines: Iterable[str]) -> Iterator[tuple[str, float]]:
        """Give name and value of everything that is found, in order."""
        for line in lines:
            for name, pattern in self._patterns.items():
                self.trying = name
                match = pattern.search(line, 0, LONGEST_LINE)
                if match and (value := _number(match[1])) is not None:
                    yield name, value

    def drop(self, name: str) -> None:
        """Look for it no more."""
        self._patterns.pop(name, None)


class Page:
    """A heartbeat page that is made from a log, as the library would make it."""

    def __init__(self, *, steps: bool, before: bytes = b"") -> None:
        """Go on with the page `before`, if it is one. Without `steps`, there is no section to be in."""
        self._writer = heartbeat.Writer(None)
        if not steps:
            self._writer.section("")
        found = heartbeat.read(before)
        self._step = found.step
        if heartbeat.is_page(before):
            for name, value in found.metrics.items():
                self._writer.metric(name, value)
            self._writer.page[: heartbeat.SIZE] = before[: heartbeat.SIZE]
            self._writer.steps_done = found.steps_done
            self._writer.first_ns = heartbeat.first_ns(before)

    def note(self, name: str, value: float) -> None:
        """Note what was found. Steps that were passed over are taken as done: programs print every hundredth."""
        if name != STEP:
            self._writer.metric(name, value)
            return
        step = int(value)
        if step == self._step or not 0 <= step < 2**62:
            return
        if self._step is not None:
            self._writer.steps_done += max(0, step - self._step - 1)
        self._step = step
        self._writer.step(step)

    def content(self) -> bytes:
        """All of it."""
        return self._writer.page[: heartbeat.SIZE]


def _number(text: str | None) -> float | None:
    try:
        value = float(text) if text is not None else None
    except ValueError:
        return None
    return value if value is not None and abs(value) < float("inf") else None
