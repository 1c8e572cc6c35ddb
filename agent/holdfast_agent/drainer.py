"""Brings to their storage what workers that are gone left in the spool, by a process of its own.

Workers bring their own files while they live. What an agent may import does not reach S3, and an upload is nothing
for a process that has heartbeats to send.
"""

import asyncio
import os
import re
import sys
from collections.abc import Callable, Collection
from pathlib import Path

import structlog

from holdfast.v1 import worker_pb2
from holdfast_agent.core import Key

FIRST_PAUSE_S = 2.0
LAST_PAUSE_S = 60.0
"""Between two looks at the spool: the storage of what is there may be away for long."""
_DESTINATION = "DESTINATION"
_FILE = re.compile(
    r"(?:rank-\d+/)?step-(?P<step>\d+)/rank-(?P<rank>\d+)\.attempt-(?P<attempt>\d+)\.safetensors"
)

log = structlog.get_logger(__name__)


class Drainer:
    """Looks at the spool now and then. `drained` hears of each shard that has reached its storage."""

    def __init__(
        self,
        spool: Path,
        live_jobs: Callable[[], Collection[str]],
        drained: Callable[[Key, worker_pb2.Report], None],
    ) -> None:
        """`live_jobs` says which jobs have workers here, who see to their own files."""
        self._spool = spool
        self._live_jobs = live_jobs
        self._drained = drained

    async def run(self) -> None:
        """Work until cancelled."""
        pause = FIRST_PAUSE_S
        while True:
            await asyncio.sleep(pause)
            try:
                left = [path for path in self._left() if path.name not in self._live_jobs()]
                brought = [await self._drain(path) for path in left]
            except OSError as error:
                log.warning("the spool can't be drained", spool=str(self._spool), error=str(error))
                left, brought = [self._spool], []
            pause = min(2 * pause, LAST_PAUSE_S) if left and not any(brought) else FIRST_PAUSE_S

    def _left(self) -> list[Path]:
        """The spools of jobs in which files wait."""
        return sorted(
            job
            for job in self._spool.iterdir()
            if any(_DESTINATION in names for _, _, names in os.walk(job))  # where workers make and remove
        )

    async def _drain(self, path: Path) -> bool:
        """Bring what can be brought. True when anything was."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "holdfast.worker.drain", str(path), stdout=asyncio.subprocess.PIPE
        )
        brought = False
        try:
            assert process.stdout is not None
            async for line in process.stdout:
                brought = True
                self._tell(path.name, line.decode(errors="replace").strip())
            await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return brought

    def _tell(self, job_id: str, name: str) -> None:
        log.info("brought to its storage", job=job_id, file=name)
        if found := _FILE.fullmatch(name):
            key = Key(job_id, int(found["rank"]), int(found["attempt"]))
            self._drained(
                key, worker_pb2.Report(kind=worker_pb2.Report.KIND_DRAINED, step=int(found["step"]))
            )
