"""What a worker that hangs is doing: the stacks of its threads, what the kernel says of them, the end of its log.

py-spy reads the worker's memory and neither stops nor traces it: what hangs does not run away, and a worker that a look
has hurt would be worse than a stack that is a little wrong. It works on one that is stopped (SIGSTOP), too.
"""

import asyncio
import contextlib
import json
import os
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from holdfast_agent.log_file import STDERR, STDOUT
from holdfast_agent.shim import start_time

MOST_BYTES = 16 * 1024
NATIVE_BYTES = 4 * 1024
LOG_BYTES = 2 * 1024
PY_SPY_S = 10.0
TRIES = 3
"""A stack that changes while it is read can't be read: other threads may run."""
MOST_CHILDREN = 32
MOST_PYTHONS = 4
"""Of what a worker that is no Python itself has started, a shell for instance: so many are looked into."""
MOST_THREADS = 48
KERNEL_FRAMES = 4

_NONE = "no Python stacks: "
_REASON = re.compile(r"^(Error:|\d+:)\s*")


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was found."""

    text: str
    stopped: bool
    """By a signal."""
    where: str
    """The innermost frame of the main thread; empty when it could not be had."""


async def take(pid: int, pid_start: int, directory: Path) -> Evidence:
    """Look at a worker, by its pid and start time, whose logs are in `directory`. Takes a fraction of a second, mostly.

    At most MOST_BYTES.
    """
    where, stacks = await _stacks(pid)
    if stacks.startswith(_NONE):
        where, stacks = await _stacks_below(pid) or (where, stacks)
    state, native = await asyncio.to_thread(_native, pid)
    if start_time(pid) != pid_start:
        return Evidence("it ended while it was looked at", stopped=False, where="")
    logs = [_tail(directory / name) for name in (STDERR, STDOUT)]
    rest = "\n".join(part for part in (native, *logs) if part)
    text = f"{_cut(stacks, MOST_BYTES - len(rest.encode()) - 1)}\n{rest}"
    return Evidence(text, stopped=state == "T", where=where)


async def _stacks_below(pid: int) -> tuple[str, str] | None:
    """The same of the Python programs that it has started; the frame is the first one's. None when there are none."""
    found: list[tuple[str, str]] = []
    pythons = [each for each in _descendants(pid) if _read(Path(f"/proc/{each}/comm")).startswith("python")]
    for each in pythons[:MOST_PYTHONS]:
        where, stacks = await _stacks(each)
        if not stacks.startswith(_NONE):
            found.append((where, f"started by it, process {each}:\n{stacks}"))
    return (found[0][0], "\n".join(stacks for _, stacks in found)) if found else None


async def _stacks(pid: int) -> tuple[str, str]:
    """The innermost frame of the main thread, and the Python stacks of all; a sentence when there are none."""
    py_spy = find_py_spy()
    if py_spy is None:
        return "", f"{_NONE}py-spy is not installed here; it comes with holdfast[agent]"
    said = ""
    for _ in range(TRIES):
        process = await asyncio.create_subprocess_exec(
            py_spy,
            # As JSON: its text begins with the command line of the worker, which may hold a secret.
            *("dump", "--nonblocking", "--json", "--pid", str(pid)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(PY_SPY_S):
                out, err = await process.communicate()
        except TimeoutError:
            return "", f"{_NONE}py-spy took more than {PY_SPY_S:g} s"
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode == 0:
            return _written(json.loads(out), pid)
        said = _reason(err.decode(errors="replace"))
    return "", f"{_NONE}py-spy: {said}"


def _written(threads: list[dict[str, Any]], pid: int) -> tuple[str, str]:
    """Write the threads of a dump, the main thread first."""
    lines, where = [], ""
    for thread in sorted(threads, key=lambda thread: thread["os_thread_id"] != pid):
        state = "running" if thread["active"] else "idle"
        gil = ", holds the GIL" if thread["owns_gil"] else ""
        lines.append(f'Thread {thread["os_thread_id"]} "{thread["thread_name"] or ""}" ({state}{gil})')
        frames = [
            f"{frame['name']} ({frame['short_filename'] or frame['filename']}:{frame['line']})"
            for frame in thread["frames"]
        ]
        if thread["os_thread_id"] == pid and frames:
            where = frames[0]
        lines += [f"    {frame}" for frame in frames]
    return where, "\n".join(lines)


def find_py_spy() -> str | None:
    """The program's path: the one that was installed with us, or that of PATH."""
    beside = Path(sys.executable).with_name("py-spy")
    return str(beside) if os.access(beside, os.X_OK) else shutil.which("py-spy")


def _reason(said: str) -> str:
    """What went wrong, of an error with its causes: the last of them, or the first line."""
    told = said.partition("Stack backtrace:")[0].strip().splitlines()
    return _REASON.sub("", told[-1].strip()) if told else "it says nothing"


def _native(pid: int) -> tuple[str, str]:
    """The state of a process, one letter, and a line for each thread of it and of what it has started."""
    lines = ["native state:", *_threads(pid, kernel=True)]
    for child in _descendants(pid)[:MOST_CHILDREN]:
        lines += [f"  started by it, {line}" for line in _threads(child, kernel=False)]
    return _field(Path(f"/proc/{pid}/status"), "State")[:1], _cut("\n".join(lines), NATIVE_BYTES)


def _threads(pid: int, *, kernel: bool) -> list[str]:
    lines = []
    with contextlib.suppress(OSError):
        tasks = sorted(Path(f"/proc/{pid}/task").iterdir(), key=lambda path: int(path.name))
        for task in tasks[:MOST_THREADS]:
            call = _read(task / "syscall").split()
            where = f"in system call {call[0]}" if call and call[0].isdecimal() else " ".join(call[:1])
            state, comm = _field(task / "status", "State"), _read(task / "comm").strip()
            lines.append(f"{task.name} {comm}: {state}, {_read(task / 'wchan') or '0'}, {where}".rstrip(" ,"))
            if kernel and int(task.name) == pid:
                frames = _read(task / "stack").splitlines()[:KERNEL_FRAMES]
                lines += [f"    {frame.partition('] ')[2]}" for frame in frames]
    return lines


def _descendants(pid: int) -> list[int]:
    found: list[int] = []
    todo = [pid]
    while todo and len(found) < MOST_CHILDREN:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{todo.pop()}/task").iterdir():
                children = [int(word) for word in _read(task / "children").split()]
                found += children
                todo += children
    return found


def _field(path: Path, name: str) -> str:
    for line in _read(path).splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return value.strip()
    return ""


def _read(path: Path) -> str:
    """What a file of /proc says; nothing where it may not be read."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _tail(path: Path) -> str:
    """The last lines of a log."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - LOG_BYTES))
            data = file.read(LOG_BYTES)
    except OSError:
        return ""
    text = data.decode(errors="replace")
    if len(data) == LOG_BYTES:
        text = text.partition("\n")[2] or text
    return f"the end of {path.name}:\n{text.rstrip()}" if text.strip() else ""


def _cut(text: str, most: int) -> str:
    """Leave away what is too much, from the end."""
    data = text.encode()
    return text if len(data) <= most else data[: most - 4].decode(errors="ignore") + "\n…"
