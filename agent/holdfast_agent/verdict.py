"""How a worker ended, in one word and in words: from what its shim wrote down, and from what it said last. PURE.

Nothing is claimed that is not proven: a SIGKILL is the kernel's for memory when the kernel says so, in its count for
the worker's group or in its log.
"""

import errno
import os
import re
import signal
from collections.abc import Callable
from typing import Any, NamedTuple

from holdfast.v1 import job_pb2

_NO_MEMORY = re.compile(
    r"MemoryError\b|CUDA out of memory|HIP out of memory|std::bad_alloc|"
    r"RESOURCE_EXHAUSTED: Out of memory|Cannot allocate memory"
)
_NO_SPACE = re.compile(r"No space left on device|\bENOSPC\b|Disk quota exceeded")
_UNITS = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


class Verdict(NamedTuple):
    """How it ended."""

    kind: "job_pb2.ExitKind.ValueType"
    message: str


def judge(
    found: dict[str, Any], line: str, *, kernel: Callable[[], str], counted: int = 0, fenced: str = ""
) -> Verdict:
    """Say how a worker ended whose exit.json is `found`, and whose output ends with `line`.

    `kernel` looks into the kernel's log: what it says about having killed this worker for memory, or nothing.
    `counted` is how many of the kernel's victims in its group were told of before.
    """
    said = describe(found)
    if found.get("failed"):
        return Verdict(job_pb2.EXIT_KIND_NEVER_RAN, said)
    if fenced or found.get("alone_s"):
        alone = fenced or f"there was no agent for {found['alone_s']} s"
        return Verdict(job_pb2.EXIT_KIND_ABANDONED, f"stopped ({said}): {alone}")
    own = _by_kernel(found, said, kernel, counted)
    if own is not None:
        return own
    if found["code"] > 0 or found["signal"] == signal.SIGABRT:
        if _NO_MEMORY.search(line):
            return Verdict(job_pb2.EXIT_KIND_OUT_OF_MEMORY, f"{said}, out of memory")
        if _NO_SPACE.search(line):
            return Verdict(job_pb2.EXIT_KIND_DISK_FULL, f"{said}, disk full")
    if found.get("disk_full") and (found["code"] > 0 or found["signal"] == signal.SIGBUS):
        return Verdict(job_pb2.EXIT_KIND_DISK_FULL, f"{said}, and the disk that its output goes to was full")
    kind = job_pb2.EXIT_KIND_SIGNALLED if found["signal"] else job_pb2.EXIT_KIND_EXITED
    return Verdict(kind, said)


def shim_lost(message: str) -> Verdict:
    """Nobody saw how it ended."""
    return Verdict(job_pb2.EXIT_KIND_SHIM_LOST, message)


def plain(message: str) -> Verdict:
    """It ended, and there is no more to say."""
    return Verdict(job_pb2.EXIT_KIND_EXITED, message)


def not_started(error: Exception, state_dir: str) -> Verdict:
    """An agent whose state directory is `state_dir` could not start it."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        full = f"the disk of its state directory {state_dir} is full"
        return Verdict(job_pb2.EXIT_KIND_DISK_FULL, f"its agent could not start it: {full}")
    return plain(f"its agent could not start it: {error}")


def _by_kernel(found: dict[str, Any], plain: str, kernel: Callable[[], str], counted: int) -> Verdict | None:
    """Whether the kernel killed it, or something of it, for memory."""
    memory = found.get("memory") or {}
    struck = memory.get("kills", 0) - max(memory.get("kills_before", 0), counted)
    limit = memory.get("limit", 0)
    of_group = f" (limit {size(limit)} of the cgroup)" if limit else ""
    if found["signal"] == signal.SIGKILL and not found.get("killed"):
        if memory.get("own") and struck > 0:
            message = f"killed by the kernel's out-of-memory killer{of_group}"
            return Verdict(job_pb2.EXIT_KIND_OUT_OF_MEMORY, message)
        if said := kernel():
            message = f"killed by the kernel's out-of-memory killer{of_group} ({said})"
            return Verdict(job_pb2.EXIT_KIND_OUT_OF_MEMORY, message)
        if struck > 0:
            also = "and the kernel's out-of-memory killer has struck in its cgroup meanwhile"
            return Verdict(job_pb2.EXIT_KIND_OUT_OF_MEMORY, f"{plain}, {also}{of_group}")
    elif memory.get("own") and struck > 0 and (found["code"] > 0 or found["signal"]):
        also = "after the kernel's out-of-memory killer had killed a process of it"
        return Verdict(job_pb2.EXIT_KIND_OUT_OF_MEMORY, f"{plain}, {also}{of_group}")
    return None


def describe(found: dict[str, Any]) -> str:
    """Say in words how a worker ended, from its exit.json."""
    failed = found.get("failed")
    if failed:
        what, why = failed["what"], os.strerror(failed["errno"])
        if failed["cwd"]:
            return f"working directory {what} can't be used: {why}"
        if failed["errno"] == errno.ENOENT and failed.get("interpreter"):
            return f"command {what} can't be run: its first line names {failed['interpreter']!r}, which is not there"
        if failed["errno"] == errno.ENOENT:
            return f"command not found: {what}"
        return f"command {what} can't be run: {why}"
    if found["signal"]:
        return f"killed by {signal_name(found['signal'])}"
    return f"exit code {found['code']}"


def signal_name(number: int) -> str:
    """SIGKILL for 9, and so on."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def size(count: int) -> str:
    """2 GiB for so many bytes, and so on."""
    for unit, name in _UNITS:
        if count >= unit:
            return f"{count / unit:.4g} {name}"
    return f"{count} bytes"
