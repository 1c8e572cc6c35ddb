"""What the coordinator has not noted yet of hangs, pure: like exits and shards, said again after every Welcome.

Of each worker the newest is kept, that it hangs or that it moves again: the end of a hang says enough of it to be told
alone. What a worker that is being stopped or has ended had hung in is over with it.
"""

from dataclasses import dataclass, field
from typing import Any

from holdfast_agent.core import AgentState, Key, Phase, Stop


@dataclass(frozen=True, slots=True)
class Report:
    """A worker hangs, or with `over`, moves again; what there is to say of it is opaque here."""

    key: Key
    since_ns: int
    """Names the hang: when the worker last moved."""
    over: bool = False
    content: Any = None


@dataclass(slots=True)
class Reports:
    """What is not noted."""

    held: dict[Key, Report] = field(default_factory=dict)

    def notice(self, state: AgentState, report: Report) -> list[Report]:
        """Keep what was noticed; returns what is to be told now."""
        if not watched(state, report.key):
            return []
        self.held[report.key] = report
        return [report] if state.connected else []

    def welcomed(self, state: AgentState) -> list[Report]:
        """Return what is to be told in a new session."""
        self.held = {key: report for key, report in self.held.items() if watched(state, key)}
        return [self.held[key] for key in sorted(self.held)] if state.connected else []

    def noted(self, key: Key, since_ns: int, *, over: bool) -> bool:
        """Forget what is durable at the coordinator, or about something that is over. True when it was the newest."""
        held = self.held.get(key)
        if held is None or (held.since_ns, held.over) != (since_ns, over):
            return False
        del self.held[key]
        return True

    def ended(self, key: Key) -> None:
        """Forget what a worker had hung in that has ended."""
        self.held.pop(key, None)


def watched(state: AgentState, key: Key) -> bool:
    """Tell whether a worker is one that can hang: it runs, and is not being stopped."""
    worker = state.workers.get(key)
    return worker is not None and worker.phase is Phase.RUNNING and worker.stop is Stop.NO
