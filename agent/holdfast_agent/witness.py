"""How an attempt ended, put together from all that it left: exit.json, its output, its heartbeat page, the kernel."""

import asyncio
import os
import signal
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from holdfast import heartbeat
from holdfast_agent import cgroups, convert, log_rules, orphans, tail, verdict
from holdfast_agent.core import Ended
from holdfast_agent.fork_link import SpawnError
from holdfast_agent.kernel_log import KernelLog
from holdfast_agent.log_file import STDERR, STDOUT
from holdfast_agent.shim import EXIT, SHIM, START
from holdfast_agent.workdir import Attempt

log = structlog.get_logger(__name__)

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class _Findings:
    """All about an end, but for which rules' logs are in its output."""

    found: dict[str, Any]
    how: verdict.Verdict
    page: heartbeat.Reading
    lines: list[str]
    line: str
    ended_ns: int
    patterns: list[log_rules.Pattern]
    searched: list[str]
    """The last lines of both outputs, for a rule may mean either."""

    def told(self, matched: list[int], slow: list[int]) -> Ended:
        how = self.how
        if slow:
            named = ", ".join(f"rule {number + 1}" for number in slow)
            how = how._replace(message=f"{how.message}; the log of {named} took too long to look for")
        return convert.ended_from_disk(
            self.found,
            how,
            self.page,
            line=self.line,
            tail="\n".join(self.lines),
            ended_ns=self.ended_ns,
            matched=matched,
        )


class Witness:
    """Tells how attempts ended. `boot_id` is of the machine: what a clock said before it booted means nothing now."""

    def __init__(self, boot_id: str) -> None:
        self._boot_id = boot_id
        self._kernel = KernelLog()
        self._counted: dict[str, int] = {}
        """How many of the kernel's victims in a group were told of: what they share is not everybody's end."""

    async def recorded(self, attempt: Attempt) -> Ended | None:
        """How its shim says that it ended; None while it does not, and when it was killed before it could."""
        found = self._record_of(attempt)
        return await self._told(self._look(attempt, found)) if found is not None else None

    def recorded_at_start(self, attempt: Attempt) -> Ended | None:
        """The same, of an attempt that ended while there was no agent; waits for what takes a moment."""
        found = self._record_of(attempt)
        if found is None:
            return None
        findings = self._look(attempt, found)
        return findings.told(*log_rules.matching(findings.patterns, findings.searched))

    async def unrecorded(self, attempt: Attempt) -> Ended:
        """How it ended though its shim was killed; ends what that left behind."""
        place = (attempt.read(START) or {}).get("cgroup")
        if place:
            await asyncio.to_thread(cgroups.end, place)
        await orphans.end(f"HOLDFAST_HEARTBEAT_FILE={attempt.heartbeat}")
        lost = verdict.shim_lost("killed: its shim was killed")
        return await self._told(self._look(attempt, _now(signal.SIGKILL), lost))

    def close(self) -> None:
        """Let go of what it holds."""
        self._kernel.close()

    @staticmethod
    def _record_of(attempt: Attempt) -> dict[str, Any] | None:
        found = attempt.read(EXIT)
        if found is not None and found["dropped_bytes"]:
            lost = found["dropped_bytes"]
            log.warning("the disk took not all of its output", worker=attempt.key, lost=lost)
        return found

    @staticmethod
    async def _told(findings: _Findings) -> Ended:
        if not findings.patterns:
            return findings.told([], [])
        return findings.told(
            *await asyncio.to_thread(log_rules.matching, findings.patterns, findings.searched)
        )

    def _look(self, attempt: Attempt, found: dict[str, Any], how: verdict.Verdict | None = None) -> _Findings:
        start = attempt.read(START) or {}
        outputs = [tail.last_lines(attempt.path / name) for name in (STDERR, STDOUT)]
        lines = next((lines for lines in outputs if lines), [])
        line = tail.line_that_matters(lines, signalled=bool(found["signal"]))
        succeeded = not (found["code"] or found["signal"])
        return _Findings(
            found,
            how or self._judge(attempt, found, line),
            heartbeat.read(attempt.read_heartbeat()),
            lines,
            "" if succeeded else line,
            found.get("ended_ns", 0) if start.get("boot_id") == self._boot_id else 0,
            [] if succeeded else start.get("log_rules", []),
            [line for lines in outputs for line in lines],
        )

    def _judge(self, attempt: Attempt, found: dict[str, Any], line: str) -> verdict.Verdict:
        kernel = partial(self._ask_kernel, attempt)
        memory = found.get("memory") or {}
        group = memory.get("group", "")
        counted = self._counted.get(group, 0)
        self._counted[group] = max(counted, memory.get("kills", 0))
        return verdict.judge(found, line, kernel=kernel, counted=counted, fenced=attempt.fenced)

    def _ask_kernel(self, attempt: Attempt) -> str:
        started = attempt.read(SHIM) or {}
        since_ns = started.get("worker_start_time", 0) * 1_000_000_000 // TICKS_PER_S
        return self._kernel.killed_for_memory(started.get("worker_pid", 0), since_ns)


def never_begun(why: str) -> Ended:
    """An attempt of which no process ever was."""
    return _never_begun(verdict.plain(why))


def not_started(error: OSError | SpawnError, state_dir: Path) -> Ended:
    """An attempt that the agent could not start."""
    return _never_begun(verdict.not_started(error, str(state_dir)))


def _never_begun(said: verdict.Verdict) -> Ended:
    found = _now(0)
    return convert.ended_from_disk(found, said, heartbeat.Reading(), ended_ns=found["ended_ns"])


def _now(killed_by: int) -> dict[str, Any]:
    at, monotonic = time.time_ns() // 1_000_000, time.monotonic_ns()
    return {"code": -1, "signal": killed_by, "at_ms": at, "ended_ns": monotonic}
