"""Keeps the logs of a job on this node below its limit: frees those of attempts that are over, oldest first.

A live worker's shim bounds its own logs to the worker's share of the limit, whether or not there is an agent. The rest
is what attempts that are over may have, and this sees to it.
"""

import asyncio
import json
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

import structlog

from holdfast_agent.log_file import STDERR, STDOUT, Log, measure
from holdfast_agent.shim import EXIT, LOG_BYTES, START
from holdfast_agent.workdir import RELEASED

LOOK_EVERY_S = 5.0
_BLOCK = 4096

log = structlog.get_logger(__name__)


class Kept(NamedTuple):
    """What is kept of one log. In the order in which attempts are freed."""

    attempt: int
    rank: int
    name: str
    size: int
    live: bool = False


def plan(logs: Collection[Kept], limit: int) -> list[tuple[Kept, int]]:
    """PURE: how many bytes of which logs to free, so that all of them together are below the limit."""
    excess = sum(each.size for each in logs) - limit
    freed = []
    for each in sorted(each for each in logs if not each.live and each.size):
        if excess <= 0:
            break
        count = min(each.size, -(-excess // _BLOCK) * _BLOCK)
        freed.append((each, count))
        excess -= count
    return freed


class Keeper:
    """Looks now and then at the jobs that have live workers here, and once more after the last of them."""

    def __init__(self, job: Callable[[str], Path], live_jobs: Callable[[], Collection[str]]) -> None:
        self._job = job
        self._live_jobs = live_jobs
        self._before: set[str] = set()
        self._over: dict[str, dict[str, tuple[Kept, ...]]] = {}
        """Of attempts that are over, by job and directory: they change no more."""

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            live = set(self._live_jobs())
            for job_id in sorted(live | self._before):
                try:
                    await asyncio.to_thread(self.trim, job_id)
                except OSError as error:
                    log.warning(
                        "the logs of a job can't be kept below their limit", job=job_id, error=str(error)
                    )
            for job_id in self._over.keys() - live:
                del self._over[job_id]
            self._before = live

    def trim(self, job_id: str) -> None:
        """Free what is beyond the limit of a job. Raises OSError."""
        job, over = self._job(job_id), self._over.setdefault(job_id, {})
        try:
            names = os.listdir(job)  # noqa: PTH208  there may be many attempts
        except FileNotFoundError:  # the job was deleted
            return
        logs: list[Kept] = []
        newest = ""
        for name in names:
            rank, _, attempt = name.partition("-")
            if not rank.isdecimal() or not attempt.isdecimal():
                continue
            newest = max(newest, name, key=_attempt)
            logs += over.get(name) or self._look(job / name, int(rank), int(attempt), over)
        if not newest:
            return
        for kept, count in plan(logs, limit_of(job / newest)):
            directory = f"{kept.rank}-{kept.attempt}"
            with Log(str(job / directory), kept.name) as freed:
                freed.free(freed.kept + count)
            over.pop(directory, None)

    @staticmethod
    def _look(path: Path, rank: int, attempt: int, over: dict[str, tuple[Kept, ...]]) -> tuple[Kept, ...]:
        live = not any((path / each).exists() for each in (EXIT, RELEASED))
        found = tuple(
            Kept(attempt, rank, name, measure(str(path), name).size, live) for name in (STDERR, STDOUT)
        )
        if not live:
            over[path.name] = found
        return found


def limit_of(attempt: Path) -> int:
    """How many bytes of logs the job of an attempt may have on this node."""
    try:
        limit = json.loads((attempt / START).read_bytes()).get("job_log_bytes")
    except (OSError, ValueError, AttributeError):
        limit = None
    return limit if isinstance(limit, int) else LOG_BYTES


def _attempt(name: str) -> int:
    return int(name.partition("-")[2] or 0)
