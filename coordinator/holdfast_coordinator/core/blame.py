"""Whose end began it: when a gang falls, the first culprit is told from its victims.

Ranks that talk to each other die of each other's death: a peer that is gone shows as a reset connection or a
collective that times out, and often the victims' tracebacks come first. Whom a coordinator hears of first says little.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from holdfast_coordinator.core import rules
from holdfast_coordinator.core.model import DEAD, Exit, ExitKind, Worker, WorkerState

AS_ONE_MS = 50
"""Ends so close to each other are of one moment: the clocks of two nodes agree no better."""

SHOWN = 300
"""Of the line that matters, in a sentence."""
_TOLD_TO = (2, 9, 15)
"""Signals by which a worker ends that was told to stop."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Who was first, and who fell with it."""

    culprit: Worker
    victims: tuple[Worker, ...]
    """Ended by themselves, because of it."""
    stopped: tuple[Worker, ...]
    """Were stopped."""


def verdict(members: Sequence[Worker]) -> Verdict | None:
    """Find the culprit among the workers of an attempt that is over; None when nobody ended by itself.

    Of those that ended by themselves, whoever does not say that a peer was gone comes before whoever does; then the
    earliest; of those of one moment, the one whose end says most: nobody is killed because a peer has an exit code.
    """
    ended = [(worker, worker.exit) for worker in members if worker.exit is not None and worker.state in DEAD]
    own = [(worker, how) for worker, how in ended if _by_itself(worker, how)]
    if not own:
        return None
    honest = [each for each in own if not rules.of_others(each[1])] or own
    first = min(_began(how) for _, how in honest)
    of_one_moment = [each for each in honest if _began(each[1]) <= first + AS_ONE_MS]
    culprit, _ = min(of_one_moment, key=lambda each: (_weight(*each), _began(each[1]), each[0].rank))
    victims = tuple(worker for worker, _ in own if worker is not culprit)
    fell = {culprit.rank, *(worker.rank for worker in victims)}
    return Verdict(culprit, victims, tuple(worker for worker, _ in ended if worker.rank not in fell))


def describe(worker: Worker) -> str:
    """How it ended and how far it came, with the line that matters where that is what ended it."""
    exited, step = worker.exit, worker.progress.step
    assert exited is not None
    at_step = "" if step is None else f" at step {step}"
    line = exited.line[:SHOWN] if exited.line and rules.own_doing(_as_if_alone(exited)) else ""
    return f"{exited.message}{at_step}" + (f": {line}" if line else "")


def _as_if_alone(exited: Exit) -> Exit:
    """With no line, and no full disk: what is left is whether it ended by itself."""
    kind = ExitKind.EXITED if exited.kind is ExitKind.DISK_FULL else exited.kind
    return replace(exited, kind=kind, line="")


def cause(worker: Worker) -> str:
    """Who ended, and how, in one sentence."""
    return f"rank {worker.rank} on node {worker.node}: {describe(worker)}"


def _by_itself(worker: Worker, how: Exit) -> bool:
    if worker.state in (WorkerState.FAILED, WorkerState.LOST) or how.hung_ms:
        return True
    return worker.state is WorkerState.STOPPED and how.signal not in _TOLD_TO and how.code != 0


def _began(how: Exit) -> float:
    """When its end began, in milliseconds: that of a worker that hung, when it moved last."""
    return (how.ended_ns / 1_000_000 or how.at_ms) - how.hung_ms


def _weight(worker: Worker, how: Exit) -> int:
    """How much an end says of itself; the less the more."""
    if worker.state is WorkerState.LOST or how.never_ran:
        return 0
    return 1 if how.signal else 2


def shown(ranks: Iterable[int]) -> str:
    """`rank 3`, `ranks 0 to 2, 5`."""
    runs: list[list[int]] = []
    for rank in sorted(ranks):
        if runs and rank == runs[-1][-1] + 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    said = ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)
    return f"rank{'s' if sum(map(len, runs)) > 1 else ''} {said}"
