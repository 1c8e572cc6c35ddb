"""Brings the logs of attempts that have ended to their job's checkpoint storage, by a process of its own.

It is tried until it is done, also by the next agent: what is not archived yet is seen on disk.
"""

import asyncio
import sys
from collections.abc import Iterable
from pathlib import Path

import structlog

from holdfast_agent.workdir import ARCHIVED, Attempt

FIRST_PAUSE_S = 2.0
LAST_PAUSE_S = 60.0
"""Between two tries: a storage may be away for long."""
_NEVER = 2

log = structlog.get_logger(__name__)


class Archiver:
    """Takes attempts that have ended."""

    def __init__(self) -> None:
        self._waiting: dict[Path, None] = {}
        self._came = asyncio.Event()

    def add(self, attempts: Iterable[Attempt]) -> None:
        """Archive these, unless that is done."""
        for attempt in attempts:
            if not (attempt.path / ARCHIVED).exists():
                self._waiting[attempt.path] = None
                self._came.set()

    async def run(self) -> None:
        """Work until cancelled."""
        pause = FIRST_PAUSE_S
        while True:
            await self._came.wait()
            jobs: dict[Path, list[str]] = {}
            for path in self._waiting:
                jobs.setdefault(path.parent, []).append(path.name)
            done = [await self._archive(job, names) for job, names in jobs.items()]
            if not self._waiting:
                self._came.clear()
            pause = FIRST_PAUSE_S if any(done) else min(2 * pause, LAST_PAUSE_S)
            if self._waiting:
                await asyncio.sleep(pause)

    async def _archive(self, job: Path, names: list[str]) -> bool:
        """Archive what can be. True when anything was."""
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
        done = said.decode().split()
        if process.returncode:
            reason = (why.decode(errors="replace").splitlines() or ["it was killed"])[-1]
            log.warning("logs are not archived", job=job.name, why=reason)
        for name in names if process.returncode == _NEVER else [*done, *_deleted(job, names)]:
            self._waiting.pop(job / name, None)
        return bool(done)


def _deleted(job: Path, names: list[str]) -> list[str]:
    return [name for name in names if not (job / name).exists()]
