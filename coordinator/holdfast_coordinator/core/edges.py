"""The legal edges of jobs, workers and nodes. The diagrams in docs/architecture.md are generated from here.

A state may always be written again (another reason, another pid); only changes of state need an edge.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import TypeVar

from holdfast_coordinator.core.model import JobState, NodeState, WorkerState

S = TypeVar("S", bound=StrEnum)


def _jobs() -> dict[JobState, frozenset[JobState]]:
    s = JobState
    return {
        s.PENDING: frozenset({s.STARTING, s.RESTARTING, s.STOPPING, s.STOPPED, s.FAILED}),
        s.STARTING: frozenset(
            {s.PENDING, s.RUNNING, s.RESTARTING, s.STOPPING, s.SUCCEEDED, s.FAILED, s.STOPPED}
        ),
        s.RUNNING: frozenset(
            {s.PENDING, s.STARTING, s.RESTARTING, s.STOPPING, s.SUCCEEDED, s.FAILED, s.STOPPED}
        ),
        s.RESTARTING: frozenset(
            {s.PENDING, s.STARTING, s.RUNNING, s.STOPPING, s.SUCCEEDED, s.FAILED, s.STOPPED}
        ),
        s.STOPPING: frozenset({s.FAILED, s.STOPPED}),
        s.SUCCEEDED: frozenset(),
        s.FAILED: frozenset({s.PENDING}),
        s.STOPPED: frozenset({s.PENDING}),
    }


def _workers() -> dict[WorkerState, frozenset[WorkerState]]:
    s = WorkerState
    ended = {s.SUCCEEDED, s.FAILED, s.STOPPED, s.LOST}
    return {
        s.WAITING: frozenset({s.STARTING, s.STOPPED}),
        s.STARTING: frozenset({s.RUNNING, s.STOPPING, *ended}),
        s.RUNNING: frozenset({s.STOPPING, *ended}),
        s.STOPPING: frozenset({s.SUCCEEDED, s.STOPPED, s.LOST}),
        s.SUCCEEDED: frozenset({s.WAITING}),
        s.FAILED: frozenset({s.WAITING}),
        s.STOPPED: frozenset({s.WAITING}),
        s.LOST: frozenset({s.WAITING}),
    }


def _nodes() -> dict[NodeState, frozenset[NodeState]]:
    s = NodeState
    return {
        s.READY: frozenset({s.SUSPECT, s.LOST}),
        s.SUSPECT: frozenset({s.READY, s.LOST}),
        s.LOST: frozenset({s.READY}),
    }


JOB_EDGES = _jobs()
WORKER_EDGES = _workers()
NODE_EDGES = _nodes()


class IllegalEdgeError(AssertionError):
    """The core tried a change of state that the tables do not allow: a bug in the core."""

    def __init__(self, what: str, old: StrEnum, new: StrEnum) -> None:
        super().__init__(f"{what} may not go from {old} to {new}")


def check(table: Mapping[S, frozenset[S]], what: str, old: S, new: S) -> None:
    """Raise IllegalEdgeError when `what` may not go from `old` to `new`."""
    if old is not new and new not in table[old]:
        raise IllegalEdgeError(what, old, new)
