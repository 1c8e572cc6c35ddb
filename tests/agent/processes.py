"""Real processes: which are there, and the end of all that a test has started."""

import asyncio
import contextlib
import os
import signal
from pathlib import Path

from tests.agent.fake_coordinator import PATIENCE_S

MARK = "TEST_HOUSE"
"""In the environment of every process that a test starts, directly or not."""


def alive(pid):
    """Whether there is such a process, and it is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def name(pid):
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def marked(mark):
    """Pids of the processes that carry a mark."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdecimal() and int(path.name) != os.getpid():
            with contextlib.suppress(OSError):
                if wanted in (path / "environ").read_bytes().split(b"\0"):
                    found.append(int(path.name))
    return found


def kill_all(mark):
    while found := marked(mark):
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


async def until(predicate):
    """Wait for what shows in /proc or on disk alone."""
    async with asyncio.timeout(PATIENCE_S):
        while not (found := predicate()):
            await asyncio.sleep(0.002)
        return found


async def gone(*pids):
    """Wait until processes are gone."""
    await until(lambda: not any(map(alive, pids)))


async def line_of(path):
    """The first line of a file, when it is whole."""
    await until(lambda: path.exists() and b"\n" in path.read_bytes())
    return path.read_text().splitlines()[0]
