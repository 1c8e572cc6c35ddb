"""Real processes: which are there, and the end of all that a test has started."""

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path

from holdfast_agent import cgroups
from tests.agent.fake_coordinator import PATIENCE_S

MARK = "TEST_HOUSE"
"""In the environment of every process that a test starts, directly or not."""
PYTHON = Path(sys.executable).name
"""What `name` says of the processes of this interpreter: it was started by one of several names."""


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


def names(mark):
    """Names of the processes that carry a mark, by pid. What ends while one looks is not among them."""
    found = {pid: name(pid) for pid in marked(mark)}
    return {pid: called for pid, called in found.items() if called}


def shims(mark):
    return [pid for pid, called in names(mark).items() if called == "holdfast-shim"]


def kill_all(mark):
    while found := marked(mark):
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def groups_of(root):
    """The control groups of the agents whose state is below a directory."""
    # Not rglob: what makes and removes directories there may still run.
    found = [Path(where) / "instance_id" for where, _, names in os.walk(root) if "instance_id" in names]
    names = {f"holdfast-{path.read_text()[:12]}" for path in found}
    bases = {f"{mount}/{name}" for mount in cgroups.find() if mount for name in names}
    return sorted(base for base in bases if os.path.isdir(base))


def remove_groups(root):
    """What is left of them when shims were killed whose agent did not come back."""
    for base in groups_of(root):
        dirs = []
        with contextlib.suppress(FileNotFoundError):  # a shim that has just ended has removed it itself
            dirs = [entry.path for entry in os.scandir(base) if entry.is_dir()]
        for path in dirs:
            cgroups.end({"dirs": [path], "kill": path, "own": False})
        with contextlib.suppress(OSError):
            os.rmdir(base)


LONGEST_LINE = 64 * 1024
"""A log may be much larger than memory."""


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

    def read():
        with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
            return file.readline(LONGEST_LINE)
        return b""

    await until(lambda: read().endswith(b"\n"))
    return read().decode().rstrip("\n")
