"""Where the ranks of a job would go now, or what it would wait for. Nothing is changed."""

from dataclasses import dataclass

from holdfast_coordinator.core import placement
from holdfast_coordinator.core.jobspec import JobSpec, Scope
from holdfast_coordinator.core.model import Worker, WorkerState
from holdfast_coordinator.core.state import State


@dataclass(frozen=True, slots=True)
class Plan:
    """Spots of all ranks, or why there are none."""

    spots: tuple[placement.Spot, ...] = ()
    waits: str = ""


def plan(state: State, spec: JobSpec) -> Plan:
    """Place a job that is not there, as it would be placed if it were submitted now.

    Jobs that wait go first, but have no room now, or they would not wait.
    """
    ranks = [Worker("", rank, 0, WorkerState.WAITING) for rank in range(spec.world_size)]
    spots, shortage = placement.place(ranks, spec.resources, placement.rooms(state))
    if spots and spec.restart.scope is Scope.GANG and not state.nodes[spots[0].node].ports:
        return Plan(waits=placement.waits(state, placement.no_port(spots[0].node)))
    return Plan(spots) if spots else Plan(waits=placement.waits(state, shortage))
