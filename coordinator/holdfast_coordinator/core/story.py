"""The story of a job, told from its timeline: what ended its attempts, what was done about it, what it cost."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from holdfast_coordinator.core.hangs import OF_THOSE
from holdfast_coordinator.core.model import Entry

NOTED = (
    "JobWaiting",
    "JobRestartRequested",
    "CheckpointFailed",
    "CheckpointQuarantined",
    "CheckpointDegraded",
    "CheckpointDrained",
    "CheckpointFilesLeft",
    "WorkerHung",
    "HangOver",
    "StragglerNoticed",
    "StragglerStruckOut",
    "NodeExcluded",
    "NodeIncluded",
    "ExitIgnored",
)
"""What is worth telling although nothing ended with it."""
_DIFFERS = re.compile(r"rank (\d+) is ")
_OF_A_WORKER = ("WorkerExited", "WorkerLost", "WorkerHung")


@dataclass(frozen=True, slots=True)
class Incident:
    """One end of an attempt that was not its success."""

    at_ms: int
    attempt: int
    cause: str
    rank: int | None = None
    """The culprit; None: no rank alone."""
    node: str = ""
    fell: str = ""
    """Who ended with it, in words."""
    decided: str = ""
    cost: str = ""
    evidence: str = ""
    of_rank: int | None = None
    """Whose attempt it was, where ranks restart alone; None: that of all."""


@dataclass(frozen=True, slots=True)
class Story:
    """Incidents and notes, oldest first, and how many older incidents are left out."""

    incidents: tuple[Incident, ...] = ()
    notes: tuple[Entry, ...] = ()
    left_out: int = 0


def tell(entries: Iterable[Entry], most: int, *, alone: bool = False) -> Story:
    """Tell the story of one job from its entries, oldest first; of its incidents the newest `most`.

    `alone`: its ranks restart alone.
    """
    teller = _Teller(alone=alone)
    for entry in entries:
        teller.hear(entry)
    incidents = teller.incidents()
    return Story(
        incidents=tuple(incidents[-most:]),
        notes=tuple(teller.notes[-most:]),
        left_out=max(0, len(incidents) - most),
    )


class _Teller:
    """Puts together what entries of one end say apart from each other.

    The end of an attempt is decided about (RestartDecided or JobGivenUp) when its first death is known; who was really
    first (AttemptEnded) when all are gone; and what it cost (GangUp) when all are up again.
    """

    def __init__(self, *, alone: bool) -> None:
        self._alone = alone
        self.notes: list[Entry] = []
        self._incidents: list[Incident] = []
        self._open: dict[int | None, int] = {}
        """By gang: None, or its rank. The newest incident."""
        self._last: dict[tuple[int, int], Entry] = {}
        """What was last told of a rank and attempt, with evidence if there is any."""
        self._differs: dict[int, str] = {}
        """By attempt of all ranks: which of those that hung is likely what the others waited for, as far as known."""

    def incidents(self) -> list[Incident]:
        return [self._with_evidence(self._with_differing(incident)) for incident in self._incidents]

    def hear(self, entry: Entry) -> None:
        match entry.kind:
            case "RestartDecided":
                self._begin(entry, entry.attempt - 1, entry.outcome)
            case "JobGivenUp":
                self._begin(entry, entry.attempt, "the job ends")
            case "AttemptEnded":
                self._name(entry)
            case "GangUp":
                self._cost(entry)
            case kind if kind in NOTED:
                self.notes.append(entry)
        if entry.kind == "WorkerHung" and OF_THOSE in entry.message and not self._alone:
            self._differs[entry.attempt] = entry.message.partition(OF_THOSE)[2]
        if entry.kind in _OF_A_WORKER and entry.rank is not None:
            before = self._last.get((entry.rank, entry.attempt))
            if entry.evidence or before is None or not before.evidence:
                self._last[entry.rank, entry.attempt] = entry

    def _begin(self, entry: Entry, attempt: int, decided: str) -> None:
        self._open[entry.rank] = len(self._incidents)
        incident = Incident(
            entry.at_ms,
            attempt,
            entry.message,
            entry.rank,
            entry.node,
            decided=decided,
            of_rank=entry.rank if self._alone else None,
        )
        self._incidents.append(incident)

    def _name(self, entry: Entry) -> None:
        """Whoever was first is the culprit, whoever the coordinator heard of first."""
        for gang in (None, entry.rank):
            at = self._open.get(gang)
            if at is not None and self._incidents[at].attempt == entry.attempt:
                self._incidents[at] = replace(
                    self._incidents[at],
                    cause=entry.message,
                    fell=entry.outcome,
                    rank=entry.rank,
                    node=entry.node,
                )
                return

    def _cost(self, entry: Entry) -> None:
        at = self._open.get(entry.rank)
        if at is not None:
            self._incidents[at] = replace(self._incidents[at], cost=entry.message)

    def _with_differing(self, incident: Incident) -> Incident:
        """Of a gang that hung: the first to be heard of is mostly one that waited."""
        differs = self._differs.get(incident.attempt)
        if differs is None or "hung in section" not in incident.cause:
            return incident
        return replace(incident, cause=f"{incident.cause}{OF_THOSE}{differs}")

    def _with_evidence(self, incident: Incident) -> Incident:
        if incident.rank is None:
            return incident
        found = self._last.get((incident.rank, incident.attempt))
        if found is None:
            return incident
        return replace(incident, node=found.node, evidence=self._of_differing(incident) + found.evidence)

    def _of_differing(self, incident: Incident) -> str:
        """The evidence of the one that the others waited for, where it is not the one that was heard of."""
        named = _DIFFERS.match(incident.cause.partition(OF_THOSE)[2])
        rank = int(named[1]) if named else incident.rank
        found = (
            self._last.get((rank, incident.attempt)) if rank is not None and rank != incident.rank else None
        )
        return (
            f"rank {rank}:\n{found.evidence}\nrank {incident.rank}:\n"
            if found is not None and found.evidence
            else ""
        )
