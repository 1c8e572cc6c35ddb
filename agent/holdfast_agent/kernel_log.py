"""What the kernel's log says about having killed a process for memory; nothing where it may not be read."""

import contextlib
import os
import re

KMSG = "/dev/kmsg"
RECORD_BYTES = 16 * 1024
MOST_KEPT = 1_000
SLACK_US = 2_000_000
"""The kernel's stamps and CLOCK_MONOTONIC are not quite one clock."""

INIT_NAMESPACE = "pid:[4026531836]"
"""The pids that the kernel's log has are those of this one."""

_KILLED = re.compile(r"((?:Memory cgroup o|O)ut of memory): Killed process (\d+)")


class KernelLog:
    """The kernel's log from its oldest record on; only what is new is read each time it is asked."""

    def __init__(self, path: str = KMSG) -> None:
        self._fd = -1
        self._killed: dict[int, tuple[int, str]] = {}
        """When, in microseconds since boot, and how it says so, by pid."""
        with contextlib.suppress(OSError):
            if os.readlink("/proc/self/ns/pid") == INIT_NAMESPACE:  # noqa: PTH115  it is no path
                self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)

    def killed_for_memory(self, pid: int, since_ns: int) -> str:
        """What it says about this pid since a moment after boot; empty when it says nothing."""
        self._read_on()
        at_us, said = self._killed.get(pid, (0, ""))
        return said if said and at_us >= since_ns // 1000 - SLACK_US else ""

    def close(self) -> None:
        """Let go of it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _read_on(self) -> None:
        while self._fd >= 0:
            try:
                record = os.read(self._fd, RECORD_BYTES)
            except BrokenPipeError:
                continue  # it was overwritten while we read; the next one is there
            except OSError:
                return
            if not record:
                return
            head, _, text = record.decode(errors="replace").partition(";")
            fields, said = head.split(","), _KILLED.search(text)
            if said and len(fields) > 2 and fields[2].isdecimal():
                self._killed[int(said[2])] = int(fields[2]), f"{said[1]}, says the kernel's log"
                if len(self._killed) > MOST_KEPT:
                    del self._killed[next(iter(self._killed))]
