"""The agent's own control group, below it one a job, below that one an attempt: where they are, and what is left."""

import contextlib
import os
from collections.abc import Container
from pathlib import Path
from typing import Any

import structlog

from holdfast_agent import cgroups
from holdfast_agent.core import Key

AUTO, OFF = "auto", "off"
PRELOADED = "preload"

log = structlog.get_logger(__name__)


class GroupsError(Exception):
    """What the operator asked for can't be had; the message is one sentence with the remedy."""


class Groups:
    """Says what goes into start.json. Raises GroupsError when the groups that were asked for can't be had.

    `where` is `auto` (below the agent's own group, if that may be), `off`, or the directory of a group that is
    delegated to us. With `limit_memory` each worker may have no more memory than its job's spec says that it needs.
    """

    def __init__(
        self, instance_id: str, where: str, *, limit_memory: bool, mounts: cgroups.Mounts | None = None
    ) -> None:
        name = f"holdfast-{instance_id[:12]}"
        mounts = cgroups.find() if mounts is None else mounts
        self._limits = limit_memory
        self._base = ""
        self._memory = ""
        if where == OFF:
            if limit_memory:
                raise GroupsError("memory can't be limited without control groups; leave --cgroup off away")
        elif where == AUTO:
            bases = [base for base in (mounts.unified, mounts.freezer) if base]
            self._base = next((f"{base}/{name}" for base in bases if _may_use(f"{base}/{name}")), "")
        else:
            self._base = f"{where.rstrip('/')}/{name}"
            if not _may_use(self._base):
                raise GroupsError(
                    f"{where} is no control group that this user may make others in; delegate it"
                )
        self._shared = _nearest_events(mounts.unified) or mounts.memory
        if self._base and _counts_memory(self._base, ask=limit_memory):
            self._memory = self._base
        elif limit_memory:
            self._memory = f"{mounts.memory}/{name}" if mounts.memory else ""
            if not self._memory or not _may_use(self._memory):
                raise GroupsError(
                    "memory can't be limited: the agent's control group has no memory controller that it may use; "
                    "delegate one to it, or leave --limit-memory away"
                )

        if not self._memory:
            self.close()  # there while there are workers in it: shims make it, and the last one removes it

    @property
    def base(self) -> str:
        """The agent's own group; empty where it has none."""
        return self._base

    def place(self, key: Key, memory_bytes: int) -> dict[str, Any] | None:
        """Where an attempt goes; None: nowhere of its own, and nobody counts its memory."""
        name = name_of(key)
        dirs = self._dirs(name)
        own = bool(self._memory)
        if not dirs and not self._shared:
            return None
        return {
            "dirs": dirs,
            "kill": dirs[0] if dirs else "",
            "memory": f"{self._memory}/{name}" if own else self._shared,
            "own": own,
            "limit": memory_bytes if self._limits else 0,
        }

    def place_of_preloaded(self, job_id: str) -> dict[str, Any]:
        """Where a process goes that a job's workers come out of.

        The shims that it forks are in there too, and outlive it: so nobody kills all that is in there.
        """
        dirs = self._dirs(f"{job_id}/{PRELOADED}")
        return {"dirs": dirs, "kill": "", "memory": "", "own": bool(self._memory), "limit": 0}

    def sweep(self, alive: Container[str]) -> None:
        """End what attempts that are over have left in their groups, and remove them. `alive` are names of attempts."""
        for job in self._jobs():
            for path in _below(job):
                name = f"{job.name}/{path.name}"
                if name in alive or path.name == PRELOADED:
                    continue
                log.info("removing the control group of an attempt that is over", path=str(path))
                cgroups.end({"dirs": [str(path)], "kill": str(path), "own": bool(self._memory)})
        self.tidy()

    def tidy(self, job_id: str = "") -> None:
        """Remove the groups of a job, or of all, that nothing is in any more: a shim can't remove its own."""
        # The message about an exit leaves after this, so what is not the job's is not looked at.
        for job in [Path(base, job_id) for base in self._bases()] if job_id else self._jobs():
            for path in (job / PRELOADED, job, *([] if self._memory else [job.parent])):
                with contextlib.suppress(OSError):
                    path.rmdir()

    def close(self) -> None:
        """Remove the agent's own group, unless there are workers in it."""
        self.tidy()
        for base in self._bases():
            with contextlib.suppress(OSError):
                Path(base).rmdir()

    def _dirs(self, name: str) -> list[str]:
        return [f"{base}/{name}" for base in self._bases()]

    def _bases(self) -> list[str]:
        return [base for base in dict.fromkeys((self._base, self._memory)) if base]

    def _jobs(self) -> list[Path]:
        return [job for base in self._bases() for job in _below(Path(base))]


def name_of(key: Key) -> str:
    """What the group of an attempt is called."""
    return f"{key.job_id}/{key.rank}-{key.attempt}"


def _below(group: Path) -> list[Path]:
    try:
        return [path for path in group.iterdir() if path.is_dir()]
    except FileNotFoundError:
        return []  # whoever left it last has removed it


def _may_use(directory: str) -> bool:
    """Make a group, and say whether processes may be put into it."""
    try:
        Path(directory).mkdir(exist_ok=True)
    except OSError:
        return False
    there = os.access(f"{directory}/cgroup.procs", os.W_OK)
    # Processes are moved by whoever may write to the group above both.
    return there and os.access(f"{Path(directory).parent}/cgroup.procs", os.W_OK)


def _counts_memory(base: str, *, ask: bool) -> bool:
    """Whether groups below this one of version 2 count memory. With `ask`, the one above is asked for it, too."""
    for directory in (str(Path(base).parent), base) if ask else (base,):
        with contextlib.suppress(OSError):
            if "memory" in Path(f"{directory}/cgroup.controllers").read_text().split():
                _enable(f"{directory}/cgroup.subtree_control", "memory")
    try:
        return "memory" in Path(f"{base}/cgroup.subtree_control").read_text().split()
    except OSError:
        return False


def _enable(control: str, controller: str) -> None:
    Path(control).write_text(f"+{controller}")


def _nearest_events(directory: str) -> str:
    """The nearest group at or above this one of version 2 that counts whom the kernel killed for memory."""
    while directory and directory != "/":
        if Path(f"{directory}/memory.events").exists():
            return directory
        directory = str(Path(directory).parent)
    return ""
