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
64     32s      section, UTF-8, zero-padded
96     q        number of metrics, at most 32
104    q        1: it listens on its socket for requests to stop
128    48 each  metric: 40s name, d value
====== ======== ====================================================================
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

_MAGIC = b"HOLDFST1"
_HEAD = struct.Struct("<8sqqqq")
_STEP = struct.Struct("<qqqq")
STEP_AT = 8
_SECTION = struct.Struct("<32s")
_SECTION_AT = 64
_COUNT = struct.Struct("<q")
_COUNT_AT = 96
_LISTENS = struct.Struct("<q")
_LISTENS_AT = 104
_METRIC = struct.Struct("<40sd")
_VALUE = struct.Struct("<d")
_METRICS_AT = 128
_NAME_BYTES = 40

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
    listens: bool = False


class Writer:
    """The worker's side. Not thread-safe: the training loop alone writes it, which is what makes it a heartbeat."""

    def __init__(self, path: str | None) -> None:
        """Map the file at `path`, making it when it is not there; without a path, memory that nobody reads.

        Raises OSError.
        """
        self.page = _anonymous() if path is None else _map_file(path)
        _HEAD.pack_into(self.page, 0, _MAGIC, -1, 0, 0, 0)
        self._slots: dict[str, int] = {}
        self.first_ns = 0
        self.steps_done = 0
        self._section = ""
        self.section("setup")

    def step(self, step: int) -> None:
        """Report that `step` is done. The first report ends the section "setup"."""
        self.steps_done = done = self.steps_done + 1
        pack_step(self.page, STEP_AT, step, done, self.first_ns or self.begin(), now_ns())

    def begin(self) -> int:
        """Note the time of the first report, and return it."""
        self.first_ns = now_ns()
        if self._section == "setup":
            self.section("step")
        return self.first_ns

    def section(self, name: str) -> str:
        """Say what the worker is in from here on, cut to 32 bytes; returns what it was in."""
        before, self._section = self._section, name
        _SECTION.pack_into(self.page, _SECTION_AT, name.encode()[:32])
        return before

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

    def listens(self) -> None:
        """Say that from here on the worker can be asked over its socket to stop."""
        _LISTENS.pack_into(self.page, _LISTENS_AT, 1)

    def detach(self) -> None:
        """Write to memory that nobody reads from here on: a forked child is not the worker."""
        self.page = _anonymous()

    def close(self) -> None:
        """Unmap the file."""
        self.page.close()


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
    if len(page) < SIZE or page[:8] != _MAGIC:
        return Reading()
    _, step, done, first, last = _HEAD.unpack_from(page, 0)
    (section,) = _SECTION.unpack_from(page, _SECTION_AT)
    (count,) = _COUNT.unpack_from(page, _COUNT_AT)
    metrics = {}
    for index in range(min(max(count, 0), MAX_METRICS)):
        name, value = _METRIC.unpack_from(page, _METRICS_AT + index * _METRIC.size)
        if math.isfinite(value):
            metrics[_text(name)] = value
    return Reading(
        step=None if step < 0 else step,
        steps_done=done,
        stepping_seconds=max(0, last - first) / 1e9,
        section=_text(section),
        metrics=metrics,
        listens=_LISTENS.unpack_from(page, _LISTENS_AT) != (0,),
    )


def _text(raw: bytes) -> str:
    return raw.rstrip(b"\0").decode(errors="replace")
