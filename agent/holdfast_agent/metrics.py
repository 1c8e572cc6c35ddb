"""What an agent tells Prometheus: docs/metrics.md has it for people."""

import asyncio
import contextlib
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from holdfast import __version__
from holdfast.exposition import Described, Value
from holdfast_agent.agent import Agent
from holdfast_agent.core import Key, Phase
from holdfast_agent.log_file import STDERR, STDOUT, measure

INFO = Described(
    "holdfast_agent_info", "gauge", "The node and the version that runs; always 1.", ("node", "version")
)
CONNECTED = Described("holdfast_agent_connected", "gauge", "1 while it has a session with a coordinator.")
SESSIONS = Described(
    "holdfast_agent_sessions_total", "counter", "Sessions; each but the first is a reconnect."
)
LAG = Described(
    "holdfast_agent_heartbeat_lag_seconds", "histogram", "How much later than due heartbeats were made."
)
SLOTS = Described("holdfast_agent_slots", "gauge", "How many workers it takes.")
WORKERS = Described(
    "holdfast_agent_workers", "gauge", "Its workers by where they are in their lives.", ("phase",)
)
SHIMS = Described("holdfast_agent_shims", "gauge", "Shims that it watches.")
CPU = Described(
    "holdfast_worker_cpu_seconds_total",
    "counter",
    "Of a worker that runs, with those of its children that have ended.",
    ("job_id", "rank"),
)
MEMORY = Described(
    "holdfast_worker_resident_memory_bytes", "gauge", "Of a worker that runs.", ("job_id", "rank")
)
LOGS = Described(
    "holdfast_worker_log_bytes_total",
    "counter",
    "What a worker that runs has written.",
    ("job_id", "rank", "stream"),
)
KEPT = Described(
    "holdfast_worker_log_kept_bytes", "gauge", "How much of that is kept.", ("job_id", "rank", "stream")
)

OF_WORKERS = (CPU, MEMORY, LOGS, KEPT)
ALL = (INFO, CONNECTED, SESSIONS, LAG, SLOTS, WORKERS, SHIMS, *OF_WORKERS)

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class _Live:
    key: Key
    pid: int
    logs: Path


class Exporter:
    """The numbers of one agent."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    async def collect(self) -> list[tuple[Described, Value]]:
        """Gather all there is. Files are looked at in a thread."""
        agent = self._agent
        phases: Mapping[Phase, int] = Counter(agent.phases().values())
        live = [_Live(worker.key, worker.pid, agent.logs_of(worker.key)) for worker in agent.workers()]
        found: list[tuple[Described, Value]] = [
            (INFO, {(agent.config.name, __version__): 1}),
            (CONNECTED, int(agent.session.is_open)),
            (SESSIONS, agent.session.opened),
            (LAG, agent.session.lag_s),
            (SLOTS, agent.config.slots),
            (WORKERS, {(each.value,): phases.get(each, 0) for each in Phase}),
            (SHIMS, agent.shims),
        ]
        return found + list((await asyncio.to_thread(_look, live)).items())


def _look(live: list[_Live]) -> dict[Described, dict[tuple[str, ...], float]]:
    """Look at workers that may end meanwhile."""
    found: dict[Described, dict[tuple[str, ...], float]] = {each: {} for each in OF_WORKERS}
    for worker in live:
        labels = worker.key.job_id, str(worker.key.rank)
        with contextlib.suppress(OSError, ValueError):
            found[CPU][labels], found[MEMORY][labels] = usage(worker.pid)
        for name, stream in ((STDOUT, "stdout"), (STDERR, "stderr")):
            with contextlib.suppress(OSError):
                held = measure(str(worker.logs), name)
                found[LOGS][*labels, stream] = held.end
                found[KEPT][*labels, stream] = held.size
    return found


def usage(pid: int) -> tuple[float, float]:
    """CPU seconds of a process and of its children that have ended, and its memory in bytes. Raises OSError."""
    text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    fields = text[text.rindex(")") + 2 :].split()  # its name may have anything in it
    return sum(map(int, fields[11:15])) / _TICKS, int(fields[21]) * _PAGE
