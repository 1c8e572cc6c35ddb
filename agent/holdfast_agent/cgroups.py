"""Control groups: one for each job, and in it one for each attempt, where the agent may make them.

What is in one is killed at once and whole, also what has left its parent, its session and its environment behind; and
the kernel counts there whom it killed for memory. Version 2 is used where it is mounted and may be written to, else the
freezer of version 1; where neither may, workers are ended by their shims alone, as descendants.

The shim makes the group and removes it, so that it is gone with its attempt also when the agent is. Only `os` and the
like are imported here: a shim is forked from a small process.
"""

import contextlib
import ctypes
import os
import select
import signal
import struct
import time
from typing import Any, NamedTuple

EMPTY_WITHIN_S = 5.0
"""How long to wait for what was killed to be gone; what hangs in the kernel stays for the next agent."""
UNLIMITED = 2**60
"""What version 1 says where there is no limit is beyond this."""

_SYS_CLONE3 = 435  # the same on every architecture
_CLONE_INTO_CGROUP = 0x200000000
_CLONE_CHILD_CLEARTID, _CLONE_CHILD_SETTID = 0x200000, 0x1000000
_PR_GET_TID_ADDRESS = 40
_libc = ctypes.PyDLL(
    None, use_errno=True
)  # keeps the interpreter's lock: there is one thread, before and after


class Mounts(NamedTuple):
    """This process's own groups, as directories; empty where there is none."""

    unified: str = ""
    freezer: str = ""
    memory: str = ""


def find(proc: str = "/proc/self") -> Mounts:
    """Find out which groups this process is in."""
    try:
        own = _read(f"{proc}/cgroup").splitlines()
        mounts = _read(f"{proc}/mountinfo").splitlines()
    except OSError:
        return Mounts()
    paths: dict[str, str] = {}
    for line in own:
        number, controllers, path = line.split(":", 2)
        for name in controllers.split(",") if number != "0" else ["unified"]:
            paths[name] = path
    found: dict[str, str] = {}
    for line in mounts:
        before, _, after = line.partition(" - ")
        root, mounted = before.split()[3:5]
        kind, _, options = after.split(" ", 2)
        names = ["unified"] if kind == "cgroup2" else options.split(",") if kind == "cgroup" else []
        for name in set(names) & paths.keys() - found.keys():
            if (directory := _below(paths[name], root, mounted)) is not None:
                found[name] = directory
    return Mounts(found.get("unified", ""), found.get("freezer", ""), found.get("memory", ""))


def _below(path: str, root: str, mounted: str) -> str | None:
    """Where a group lies under a mount of the part of the hierarchy at `root`; None when it is not in that part."""
    root = root.rstrip("/")
    if path != root and not path.startswith(f"{root}/"):
        return None
    return f"{mounted}{path[len(root) :]}".rstrip("/")


def _read(path: str) -> str:
    with open(path) as file:  # noqa: PTH123  pathlib is a slow import
        return file.read()


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


# Of one attempt, or of what a job has preloaded; `place` is what start.json or the plan has of it:
#   dirs    the groups to make and to be in, below those of the job
#   kill    the one of them by which it is killed
#   memory  where the kernel counts whom it killed for memory; "" where nobody says
#   own     whether that is one of `dirs`; then the agent's own group stays when nothing is in it
#   limit   of memory, in bytes; 0: none of its own


def make(place: dict[str, Any]) -> None:
    """Make its groups. Raises OSError."""
    for directory in place["dirs"]:
        for last in (False, False, True):
            try:
                os.makedirs(directory, exist_ok=True)  # noqa: PTH103
            except FileNotFoundError:  # whoever left last removed one of those above it just now
                if last:
                    raise
            else:
                break
        if place["own"]:
            _count_memory_below(os.path.dirname(directory))  # noqa: PTH120
        if place["limit"] and directory == place["memory"]:
            _limit_memory(directory, place["limit"])


def _count_memory_below(directory: str) -> None:
    """Version 2 asks for it at every level."""
    with contextlib.suppress(OSError):
        _write(f"{directory}/cgroup.subtree_control", "+memory")


def _limit_memory(directory: str, limit: int) -> None:
    names = ("memory.max", "memory.limit_in_bytes")
    _write(next(path for name in names if os.path.exists(path := f"{directory}/{name}")), str(limit))  # noqa: PTH110


def fork_into(place: dict[str, Any], *, exec_follows: bool) -> tuple[int, list[str]]:
    """Fork into the groups. The child gets 0, and those that it has to `enter` itself, before it does anything else.

    Being forked into a group takes a millisecond, moving there ten, and no other fork on the machine waits for it. A
    child that does not exec goes on with this process's C library: see `_clone_into`.
    """
    dirs = place["dirs"]
    if dirs and os.path.exists(f"{dirs[0]}/cgroup.kill"):  # noqa: PTH110
        thread = None if exec_follows else _main_thread()
        pid = _clone_into(dirs[0], thread) if exec_follows or thread else None
        if pid is not None:
            return pid, dirs[1:]
    return os.fork(), dirs


class _Thread(NamedTuple):
    """What glibc and the kernel have agreed on about a thread, and a fork has to renew; the addresses are in memory."""

    set_robust_list: int
    id_at: int
    robust_list_at: int
    robust_list_bytes: int


def _main_thread() -> _Thread | None:
    """None: not known, or another C library."""
    calls = {"x86_64": (274, 273), "aarch64": (100, 99)}.get(os.uname().machine)
    with contextlib.suppress(ValueError):
        if calls and (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc"):
            number, robust, size = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_size_t()
            failed = _libc.prctl(_PR_GET_TID_ADDRESS, ctypes.byref(number), 0, 0, 0)
            failed |= _libc.syscall(calls[0], 0, ctypes.byref(robust), ctypes.byref(size))
            if not failed and number.value and robust.value:
                return _Thread(calls[1], number.value, robust.value, size.value)
    return None


def _clone_into(directory: str, thread: _Thread | None) -> int | None:
    """Fork a process of one thread. None where the kernel, or whoever guards it, does not let us.

    With `thread` it does what glibc's fork does, but for the handlers of pthread_atfork: what they did when this
    process was forked itself is so in its child. Without, only an exec puts the child right.
    """
    group = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    flags = _CLONE_INTO_CGROUP
    if thread:
        flags |= _CLONE_CHILD_CLEARTID | _CLONE_CHILD_SETTID
    id_at = thread.id_at if thread else 0
    arguments = struct.pack("11Q", flags, 0, id_at, 0, signal.SIGCHLD, 0, 0, 0, 0, 0, group)
    ctypes.pythonapi.PyOS_BeforeFork()
    pid: int = _libc.syscall(_SYS_CLONE3, arguments, len(arguments))
    if pid == 0:
        if thread:
            robust_list = ctypes.c_void_p(thread.robust_list_at), ctypes.c_size_t(thread.robust_list_bytes)
            _libc.syscall(thread.set_robust_list, *robust_list)
        ctypes.pythonapi.PyOS_AfterFork_Child()
        os.close(group)
        return 0
    ctypes.pythonapi.PyOS_AfterFork_Parent()
    os.close(group)
    return pid if pid > 0 else None


def enter(directories: list[str], pid: int = 0) -> None:
    """Move a process; 0: this one. Where that may not be, the worker is better outside than not started."""
    for directory in directories:
        with contextlib.suppress(OSError):
            _write(f"{directory}/cgroup.procs", str(pid))


def end(place: dict[str, Any]) -> bool:
    """Kill all that is in its groups, wait until it is gone, and remove them. False when something would not go."""
    ended = not place["kill"] or kill(place["kill"])
    for directory in place["dirs"]:
        _remove(directory)
        with contextlib.suppress(OSError):  # others are in there
            job = os.path.dirname(directory)  # noqa: PTH120
            os.rmdir(job)  # noqa: PTH106
            if not place["own"]:  # else the agent has it count memory
                os.rmdir(os.path.dirname(job))  # noqa: PTH106, PTH120
    return ended


def kill(directory: str) -> bool:
    """Kill all that is in a group and below it; wait until it is gone. False when something would not go."""
    until = time.monotonic() + EMPTY_WITHIN_S
    while _populated(directory):
        with contextlib.suppress(FileNotFoundError):
            if os.path.exists(f"{directory}/cgroup.kill"):  # noqa: PTH110
                _write(f"{directory}/cgroup.kill", "1")
            else:
                _kill_frozen(directory)
        if time.monotonic() >= until:
            return False
        time.sleep(0.002)
    return True


def _populated(directory: str) -> bool:
    try:
        return "populated 1" in _read(f"{directory}/cgroup.events")
    except FileNotFoundError:
        return any(_members(directory))
    except OSError:
        return False


def _members(directory: str) -> list[int]:
    """The processes in a group and below it."""
    found: list[int] = []
    for path, _, _ in os.walk(directory):
        with contextlib.suppress(OSError):
            found += [int(pid) for pid in _read(f"{path}/cgroup.procs").split()]
    return found


def _kill_frozen(directory: str) -> None:
    """Version 1: nothing that is frozen forks between being listed and being killed."""
    for name, frozen, thawed in (("cgroup.freeze", "1", "0"), ("freezer.state", "FROZEN", "THAWED")):
        if not os.path.exists(f"{directory}/{name}"):  # noqa: PTH110
            continue
        _write(f"{directory}/{name}", frozen)
        try:
            _wait_frozen(directory)
            for pid in _members(directory):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        finally:
            _write(f"{directory}/{name}", thawed)


def _wait_frozen(directory: str) -> None:
    until = time.monotonic() + 0.5
    while time.monotonic() < until:
        with contextlib.suppress(OSError):
            if "frozen 1" in _read(f"{directory}/cgroup.events"):
                return
        with contextlib.suppress(OSError):
            if _read(f"{directory}/freezer.state").strip() == "FROZEN":
                return
        select.select([], [], [], 0.001)


def _remove(directory: str) -> None:
    with contextlib.suppress(OSError):
        os.rmdir(directory)  # noqa: PTH106
        return
    for path, _, _ in list(os.walk(directory, topdown=False)):
        with contextlib.suppress(OSError):
            os.rmdir(path)  # noqa: PTH106


# Memory


def oom_kills(directory: str) -> int:
    """How many processes in a group the kernel has killed for memory so far; 0 where it does not say."""
    for name in ("memory.events", "memory.oom_control"):
        try:
            lines = _read(f"{directory}/{name}").splitlines()
        except OSError:
            continue
        return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
    return 0


def memory_limit(directory: str) -> int:
    """How much memory a group may have, those above it taken into account; 0 where there is no limit."""
    least = UNLIMITED
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = _read(f"{directory}/memory.stat").splitlines()
        found = [line for line in lines if line.startswith("hierarchical_memory_limit ")]
        least = int(found[0].split()[1])
    while os.path.exists(f"{directory}/memory.max"):  # noqa: PTH110
        with contextlib.suppress(OSError, ValueError):  # "max"
            least = min(least, int(_read(f"{directory}/memory.max")))
        directory = os.path.dirname(directory)  # noqa: PTH120
    return least if least < UNLIMITED else 0
