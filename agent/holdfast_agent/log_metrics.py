"""Has metrics found in the logs of workers whose job asks for it, by a process of its own; see log_scan.py."""

import asyncio
import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import structlog

from holdfast_agent.core import Key

SETTLE_WITHIN_S = 2.0
"""An end is not held back for longer, when the process is busy with a pattern that takes too long."""
PAUSE_S = 0.5
"""Before another one is started: perhaps none can be."""

log = structlog.get_logger(__name__)


class LogMetrics:
    """The process, started when it is first needed, and anew when it dies. Belongs to one event loop."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None
        self._running: asyncio.Task[None] | None = None
        self._watched: set[str] = set()
        self._ending: dict[str, asyncio.Event] = {}

    def watch(self, directory: Path) -> None:
        """Find metrics in the logs of an attempt from here on."""
        self._watched.add(str(directory))
        self._command({"watch": str(directory)})

    async def settle(self, directory: Path) -> None:
        """Wait until all that an attempt has written was looked at; it writes no more."""
        name = str(directory)
        done = self._ending.setdefault(name, asyncio.Event())
        self._command({"end": name})
        try:
            async with asyncio.timeout(SETTLE_WITHIN_S):
                await done.wait()
        except TimeoutError:
            log.warning("the last lines of a log were not looked at for metrics", **_about(name))
        self._watched.discard(name)
        self._ending.pop(name, None)
        if (
            not (self._watched or self._ending)
            and self._process is not None
            and self._process.stdin is not None
        ):
            self._process.stdin.close()  # nobody needs it now, and it takes some megabytes

    async def stop(self) -> None:
        """End the process."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)

    def _command(self, what: dict[str, str]) -> None:
        if self._running is None or self._running.done():
            self._running = asyncio.get_running_loop().create_task(self._run())
        elif (
            self._process is not None
            and self._process.stdin is not None
            and not self._process.stdin.is_closing()
        ):
            self._process.stdin.write(json.dumps(what).encode() + b"\n")

    async def _run(self) -> None:
        while self._watched or self._ending:
            process = self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",
                "-m",
                "holdfast_agent.log_scan",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                start_new_session=True,  # a Ctrl-C is the agent's to interpret
            )
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                for name in sorted(self._watched):
                    self._command({"watch": name})
                for name in sorted(self._ending):
                    self._command({"end": name})
                async for line in process.stdout:
                    self._heard(json.loads(line))
            finally:
                self._process = None
                process.stdin.close()
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
            if self._watched or self._ending:
                log.warning("what looks for metrics in logs has ended; another one is started")
                await asyncio.sleep(PAUSE_S)

    def _heard(self, said: dict[str, str]) -> None:
        if "done" in said:
            if said["done"] in self._ending:
                self._ending[said["done"]].set()
        elif "slow" in said:
            why = "its pattern takes too long to match; write one that repeats no repetition"
            log.warning(
                "a metric is not looked for any more", metric=said["slow"], why=why, **_about(said["in"])
            )
        else:
            log.warning("metrics can't be found", error=said["failed"], **_about(said["in"]))


def _about(directory: str) -> dict[str, Any]:
    """Whose directory it is, for a line of the log."""
    path = Path(directory)
    rank, _, attempt = path.name.partition("-")
    if not (rank.isdecimal() and attempt.isdecimal()):
        return {"directory": directory}
    return {"worker": Key(path.parent.name, int(rank), int(attempt))}
