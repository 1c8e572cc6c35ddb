"""Nodes that a gang is not placed on any more: the scope beyond the gang."""

from collections.abc import Iterable
from dataclasses import replace

from holdfast_coordinator.core import placement
from holdfast_coordinator.core.model import Gang
from holdfast_coordinator.core.turn import Turn

MOST_NAMED = 3


def exclude(turn: Turn, gang: Gang, node: str, cause: str) -> Gang:
    """Never place the gang on the node again; what runs of it there is the caller's to stop. Returns its new row.

    Ends when the machine comes back after it was lost, or booted, or is forgotten.
    """
    if node in gang.excluded:
        return gang
    gang = replace(gang, excluded={**gang.excluded, node: cause})
    turn.put(gang)
    turn.tell(
        "NodeExcluded",
        f"node {node} is excluded: {cause}",
        job_id=gang.job_id,
        node=node,
        rank=turn.rank_of(gang),
        attempt=gang.attempt,
    )
    return gang


def lift(turn: Turn, node: str, what: str) -> None:
    """Take a node as a new one: it was lost or booted, and whatever was wrong with it may be mended.

    `what` has become of it, in a word.
    """
    for job_id in turn.state.unfinished:
        for gang in turn.state.gangs_of(turn.state.jobs[job_id]):
            if node not in gang.excluded:
                continue
            left = {name: why for name, why in gang.excluded.items() if name != node}
            turn.put(replace(gang, excluded=left))
            turn.tell(
                "NodeIncluded",
                f"node {node} is {what}, and no longer excluded ({gang.excluded[node]})",
                job_id=job_id,
                node=node,
                rank=turn.rank_of(gang),
                attempt=gang.attempt,
            )


def fits_without(turn: Turn, gang: Gang, node: str) -> bool:
    """Whether the whole gang would find room now if it were not for this node."""
    state = turn.state
    members = state.members(gang)
    own = {worker.key for worker in members}
    rooms = [
        placement.Room.of(
            there,
            [(w, state.jobs[w.job_id].spec.resources) for w in state.live_on(there.name) if w.key not in own],
        )
        for there in state.nodes.values()
        if placement.usable(there) and there.name != node and there.name not in gang.excluded
    ]
    spots, _ = placement.place(members, state.jobs[gang.job_id].spec.resources, rooms)
    return bool(spots)


def named(gangs: Iterable[Gang]) -> str:
    """The excluded nodes in words, for why a job waits; empty when there are none."""
    excluded = {name: why for gang in gangs for name, why in gang.excluded.items()}
    if not excluded:
        return ""
    shown = "; ".join(f"{name}: {why}" for name, why in sorted(excluded.items())[:MOST_NAMED])
    more = "; …" if len(excluded) > MOST_NAMED else ""
    nodes = "1 node is" if len(excluded) == 1 else f"{len(excluded)} nodes are"
    return f"{nodes} excluded ({shown}{more})"
