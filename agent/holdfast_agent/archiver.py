"""Brings the logs of attempts that have ended to their job's checkpoint storage, by a process of its own.

It is tried until it is done, also by the next agent: what is not archived yet is seen on disk.
"""

import asyncio
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from holdfast_agent.workdir import ARCHIVED, Attempt

FIRST_PAUSE_S = 2.0
LAST_PAUSE_S = 60.0
"""Between two tries: a storage may be away for long."""
REFUSED_PAUSE_S = 600.0
"""Where it is no storage as things are: somebody may yet install what it needs, or set what is missing."""
_REFUSED = 2

log = structlog.get_logger(__name__)


@dataclass
class _Waiting:
    """What is to be archived of one job."""

    names: dict[str, None] = field(default_factory=dict)
    pause_s: float = FIRST_PAUSE_S
    due: float = 0.0


class Archiver:
    """Takes attempts that have ended. A job whose storage is away keeps no other waiting."""

    def __init__(self) -> None:
        self._jobs: dict[Path, _Waiting] = {}
        self._came = asyncio.Event()

    def add(self, attempts: Iterable[Attempt]) -> None:
        """Archive these, unless that is done."""
        for attempt in attempts:
            if not (attempt.path / ARCHIVED).exists():
                self._jobs.setdefault(attempt.path.parent, _Waiting()).names[attempt.path.name] = None
                self._came.set()

    async def run(self) -> None:
        """Work until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            self._came.clear()
            for job in [job for job, waiting in self._jobs.items() if waiting.due <= loop.time()]:
                await self._archive(job, self._jobs[job])
            due = min((waiting.due for waiting in self._jobs.values()), default=None)
            try:
                async with asyncio.timeout_at(due):
                    await self._came.wait()
            except TimeoutError:
                continue

    async def _archive(self, job: Path, waiting: _Waiting) -> None:
        """Archive what can be of a job."""
        names = list(waiting.names)
        code, done, why = await _run(job, names)
        if code:
            log.warning("logs are not archived", job=job.name, why=why)
        for name in [*done, *(name for name in names if not (job / name).exists())]:
            waiting.names.pop(name, None)
        if not waiting.names:
            del self._jobs[job]
            return
        if code == _REFUSED:
            waiting.pause_s = REFUSED_PAUSE_S
        else:
            waiting.pause_s = FIRST_PAUSE_S if done else min(2 * waiting.pause_s, LAST_PAUSE_S)
        waiting.due = asyncio.get_running_loop().time() + waiting.pause_s


async def _run(job: Path, names: list[str]) -> tuple[int | None, list[str], str]:
    """Its exit code, which attempts it has archived, and why not all."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-m",
        "holdfast_agent.archive_logs",
        str(job),
        *names,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        said, why = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    reason = (why.decode(errors="replace").splitlines() or ["it was killed"])[-1]
    return process.returncode, said.decode().split(), reason
