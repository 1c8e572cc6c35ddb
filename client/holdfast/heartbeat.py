"""The heartbeat file: one page that a worker writes through mmap and its agent reads.

It is the contract of HOLDFAST_HEARTBEAT_FILE for both sides. Touching the file is a heartbeat too; what is
described here adds the step, the section and metrics to it. A report costs a few stores into a mapped page:
no system call, no lock. A reader may see a report half written; each field is whole, and the next read sees
the rest, which is all that progress needs.

Layout, little-endian, one page of 4,096 bytes:

====== ======== ====================================================================
offset format   meaning
====== ======== ====================================================================
0      8s       magic, ``HOLDFST1``
8      q        step: the last one reported, -1 before the first
16     q        steps done by this attempt
24     q        CLOCK_MONOTONIC nanoseconds of its first report of a step, 0: none yet
32     q        the same of its last report
40     q        the same of when it came into the section that it is in
48     q        nanoseconds that it spent in the section "wait", when it left it last
64     32s      section, UTF-8, zero-padded
96     q        number of metrics, at most 32
104    q        number of sections below, at most 32
112    q        steps that there will be in all, 0: not known
128    48 each  metric: 40s name, d value
1664   q        nanoseconds from the start of the process to its first report
1672   5 q      when a section was last left that was neither "setup" nor steps, and
                nanoseconds from the first report on: in "checkpoint" as of the last
                report before that, and in all; and the same of all other sections
2048   40 each  section that was left: 32s name, q longest time in nanoseconds that it
                was left after, counted from its begin or its last report of a step
====== ======== ====================================================================

A worker *moves* when it reports a step or goes to another section; where it does not for long, it hangs.
"""

import math
import mmap
import os
import struct
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

SIZE = 4096
MAX_METRICS = 32
MAX_SECTIONS = 32
SECTION_BYTES = 32
WAIT = "wait"
"""The section in which a rank waits for others."""

_MAGIC = b"HOLDFST1"
_HEAD = struct.Struct("<8sqqqq")
_STEP = struct.Struct("<qqqq")
STEP_AT = 8
_LAST_AT = 32
_BEGUN_AT = 40
_WAITED_AT = 48
_SECTION = struct.Struct("<32s")
_SECTION_AT = 64
_COUNT = struct.Struct("<q")
_COUNT_AT = 96
_LEFT_COUNT_AT = 104
_METRIC = struct.Struct("<40sd")
_VALUE = struct.Struct("<d")
_METRICS_AT = 128
_NAME_BYTES = 40
_TOTAL_AT = 112
_ASIDE = struct.Struct("<qqqqq")
_SETUP_AT = 1664
_ASIDE_AT = 1672
_LEFT = struct.Struct("<32sq")
_LEFT_AT = 2048

# Looked up once: a report is made at every step.
pack_step = _STEP.pack_into
now_ns = time.monotonic_ns


class Reading(NamedTuple):
    """What a heartbeat file said at one moment."""

    step: int | None = None
    steps_done: int = 0
    stepping_seconds: float = 0.0
    section: str = ""
    metrics: Mapping[str, float] = MappingProxyType({})
    checkpoint_seconds: float = 0.0
    """In the section "checkpoint", from the first report of a step on."""
    other_seconds: float = 0.0
    """The same in every other section in which no step is reported, for instance "eval"."""
    aside_seconds: float = 0.0
    """How much of those two is part of `stepping_seconds`."""
    total_steps: int = 0
    """0: not known."""
    setup_seconds: float = 0.0
    """From the start of the process to its first report of a step."""
    moved_ns: int = 0
    """CLOCK_MONOTONIC when it last moved; 0: never."""
    longest_ns: Mapping[str, int] = MappingProxyType({})
    """By section that was left: the longest time that it had not moved in it when it left."""
    waiting_seconds: float = 0.0
    """In the section "wait"."""


class Writer:
    """The worker's side. Not thread-safe: the training loop alone writes it, which is what makes it a heartbeat."""

    def __init__(self, path: str | None) -> None:
        """Map the file at `path`, making it when it is not there; without a path, memory that nobody reads.

        Raises OSError.
        """
        self.page = _anonymous() if path is None else _map_file(path)
        _HEAD.pack_into(self.page, 0, _MAGIC, -1, 0, 0, 0)
        self._slots: dict[str, int] = {}
        self._left: dict[str, tuple[int, int]] = {}
        """By section: where its longest time stands in the page, and what it is."""
        self._begun_ns = 0
        self._waited_ns = 0
        self.first_ns = 0
        self.steps_done = 0
        self._left_ns = 0
        self._aside = [0, 0, 0, 0]
        """As in the page: "checkpoint" settled and in all, others settled and in all."""
        self._section = ""
        self.section("setup")

    def step(self, step: int) -> None:
        """Report that `step` is done. The first report ends the section "setup"."""
        self.steps_done = done = self.steps_done + 1
        pack_step(self.page, STEP_AT, step, done, self.first_ns or self.begin(), now_ns())

    def begin(self) -> int:
        """Note the time of the first report, and return it."""
        self.first_ns = now_ns()
        _COUNT.pack_into(self.page, _SETUP_AT, _age_ns())
        if self._section == "setup":
            self.section("step")
        return self.first_ns

    def section(self, name: str) -> str:
        """Say what the worker is in from here on, cut to 32 bytes; returns what it was in."""
        before, self._section = self._section, name
        now = now_ns()
        if self._begun_ns:
            (last,) = _COUNT.unpack_from(self.page, _LAST_AT)
            self._note_longest(before, now - max(self._begun_ns, last))
            if before == WAIT:
                self._waited_ns += now - self._begun_ns
                _COUNT.pack_into(self.page, _WAITED_AT, self._waited_ns)
            elif before not in ("setup", "step") and self.first_ns and last <= self._begun_ns:
                self._note_aside(0 if before == "checkpoint" else 2, last, now)
        self._begun_ns = now
        # In this order: a reader that sees one of them must not take the new section for as old as the one before.
        _COUNT.pack_into(self.page, _BEGUN_AT, now)
        _SECTION.pack_into(self.page, _SECTION_AT, name.encode()[:SECTION_BYTES])
        return before

    def _note_longest(self, section: str, quiet: int) -> None:
        """Note how long it had not moved in the section that it leaves, if that is longer than ever."""
        known = self._left.get(section)
        if known is None:
            index = len(self._left)
            if index == MAX_SECTIONS:
                return
            at = _LEFT_AT + index * _LEFT.size
            _LEFT.pack_into(self.page, at, section.encode()[:SECTION_BYTES], quiet)
            self._left[section] = at, quiet
            _COUNT.pack_into(self.page, _LEFT_COUNT_AT, index + 1)
        elif quiet > known[1]:
            _COUNT.pack_into(self.page, known[0] + SECTION_BYTES, quiet)
            self._left[section] = known[0], quiet

    def _note_aside(self, which: int, last: int, now: int) -> None:
        """Count the time in a section in which no step was reported, from the first report on."""
        aside = self._aside
        if last >= self._left_ns:
            aside[0], aside[2] = aside[1], aside[3]
        aside[which + 1] += now - max(self._begun_ns, self.first_ns)
        self._left_ns = now
        _ASIDE.pack_into(self.page, _ASIDE_AT, now, *aside)

    def expect(self, steps: int) -> None:
        """Say how many steps there will be in all; 0: not known."""
        _COUNT.pack_into(self.page, _TOTAL_AT, steps)

    def metric(self, name: str, value: float) -> None:
        """Set one metric. The first 32 names are kept; more are ignored."""
        at = self._slots.get(name)
        if at is None:
            index = len(self._slots)
            if index == MAX_METRICS:
                return
            at = _METRICS_AT + index * _METRIC.size
            _METRIC.pack_into(self.page, at, name.encode()[:_NAME_BYTES], value)
            self._slots[name] = at
            _COUNT.pack_into(self.page, _COUNT_AT, index + 1)
            return
        _VALUE.pack_into(self.page, at + _NAME_BYTES, value)

    def detach(self) -> None:
        """Write to memory that nobody reads from here on: a forked child is not the worker."""
        self.page = _anonymous()

    def close(self) -> None:
        """Unmap the file."""
        self.page.close()


def _age_ns() -> int:
    """How long this process has been there, to a tick of 10 ms."""
    with open("/proc/self/stat", "rb") as file:  # noqa: PTH123  pathlib is one more import before the first step
        ticks = int(file.read().rpartition(b")")[2].split()[19])
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) - ticks * 1_000_000_000 // os.sysconf("SC_CLK_TCK")


def _anonymous() -> mmap.mmap:
    return mmap.mmap(-1, SIZE)


def _map_file(path: str) -> mmap.mmap:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(fd, 0, SIZE)  # a full disk shows here, not as SIGBUS in the training loop
        return mmap.mmap(fd, SIZE)
    finally:
        os.close(fd)


def read(page: bytes | mmap.mmap) -> Reading:
    """Read one page. A page without the magic (touched by a program that uses no library) reads as nothing."""
    if not is_page(page):
        return Reading()
    _, step, done, first, last = _HEAD.unpack_from(page, 0)
    (begun,) = _COUNT.unpack_from(page, _BEGUN_AT)
    (waited,) = _COUNT.unpack_from(page, _WAITED_AT)
    (section,) = _SECTION.unpack_from(page, _SECTION_AT)
    (count,) = _COUNT.unpack_from(page, _COUNT_AT)
    metrics = {}
    for index in range(min(max(count, 0), MAX_METRICS)):
        name, value = _METRIC.unpack_from(page, _METRICS_AT + index * _METRIC.size)
        if math.isfinite(value):
            metrics[_text(name)] = value
    left, *aside = _ASIDE.unpack_from(page, _ASIDE_AT)
    inside = aside[1] + aside[3] if last >= left else aside[0] + aside[2]
    return Reading(
        step=None if step < 0 else step,
        steps_done=done,
        stepping_seconds=max(0, last - first) / 1e9,
        section=_text(section),
        metrics=metrics,
        checkpoint_seconds=max(0, aside[1]) / 1e9,
        other_seconds=max(0, aside[3]) / 1e9,
        aside_seconds=max(0, inside) / 1e9,
        total_steps=max(0, *_COUNT.unpack_from(page, _TOTAL_AT)),
        setup_seconds=max(0, *_COUNT.unpack_from(page, _SETUP_AT)) / 1e9,
        moved_ns=max(last, begun),
        longest_ns=_longest(page),
        waiting_seconds=max(0, waited) / 1e9,
    )


def is_page(page: bytes | mmap.mmap) -> bool:
    """The file was written as described above, and not merely touched."""
    return len(page) >= SIZE and page[:8] == _MAGIC


def first_ns(page: bytes | mmap.mmap) -> int:
    """CLOCK_MONOTONIC nanoseconds of the first report of a step in a page with the magic; 0: none yet."""
    return int(_HEAD.unpack_from(page, 0)[3])


def _longest(page: bytes | mmap.mmap) -> dict[str, int]:
    (count,) = _COUNT.unpack_from(page, _LEFT_COUNT_AT)
    found = (
        _LEFT.unpack_from(page, _LEFT_AT + index * _LEFT.size)
        for index in range(min(max(count, 0), MAX_SECTIONS))
    )
    return {_text(name): longest for name, longest in found}


def _text(raw: bytes) -> str:
    return raw.rstrip(b"\0").decode(errors="replace")
