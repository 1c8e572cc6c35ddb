"""Nodes that take no new work, and how what runs there moves elsewhere.

A drain cordons the node and asks every gang that has a rank there to stop after a checkpoint (stopping.py); the gang's
next attempt is placed where there is room, at no cost to its restart budget. In scope "rank" a gang is one rank, so
that the others go on. A node is drained when nothing of ours is left on it.

Who asks is a user, or the node's own agent, which has noticed that its machine is about to go away. An agent's notice
ends with the agent: one that comes back without it takes work again. What a user cordoned stays so, also when the node
was lost meanwhile.
"""

from dataclasses import replace

from holdfast_coordinator.core import stopping
from holdfast_coordinator.core.events import (
    NodeCordonRequested,
    NodeDrainRequested,
    NodeUncordonRequested,
    Notice,
)
from holdfast_coordinator.core.model import Cordon, Node
from holdfast_coordinator.core.turn import Turn

LATE_MS = 1_000
"""A notice is repeated with the time that is left; what differs less is the same."""


def requested(turn: Turn, event: NodeCordonRequested | NodeUncordonRequested | NodeDrainRequested) -> None:
    """Do what a user asks for. Asking twice is asking once."""
    node = turn.find_node(event.node)
    if node is None:
        return
    match event:
        case NodeCordonRequested(reason=reason):
            if node.cordon is None or node.cordon.by_notice or reason not in ("", node.cordon.reason):
                before = node.cordon or Cordon(reason)
                cordon = replace(before, reason=reason or before.reason, by_notice=False)
                turn.put(replace(node, cordon=cordon))
                turn.tell("NodeCordoned", f"by its user{_tail(reason)}", node=node.name)
        case NodeUncordonRequested():
            if node.cordon is not None:
                turn.put(replace(node, cordon=None))
                turn.tell("NodeUncordoned", "by its user", node=node.name)
        case NodeDrainRequested(reason=reason):
            said = f"node drain{_tail(reason)}"
            cause = f"node {node.name} is drained by its user{_tail(reason)}"
            cordon = Cordon(reason, drain_by_ms=turn.at + event.within_ms)
            _drain(turn, node, cordon, said, cause)


def noticed(turn: Turn, node: Node, notice: Notice) -> None:
    """An agent says that its machine is about to go away."""
    cordon = Cordon(notice.reason, by_notice=True, drain_by_ms=turn.at + max(0, notice.within_ms))
    if node.cordon is not None and not node.cordon.by_notice:
        cordon = replace(cordon, by_notice=False)
    _drain(turn, node, cordon, notice.reason, f"node {node.name} is drained: {notice.reason}")


def carried_over(turn: Turn, old: Node | None, notice: Notice | None) -> Cordon | None:
    """What a node that comes back is still cordoned for."""
    if old is None or old.cordon is None:
        return None
    if old.cordon.by_notice and notice is None:
        turn.tell(
            "NodeUncordoned", f"its agent is back without a notice{_tail(old.cordon.reason)}", node=old.name
        )
        return None
    return old.cordon


def _drain(turn: Turn, node: Node, wanted: Cordon, said: str, cause: str) -> None:
    before = node.cordon
    earlier = before.drain_by_ms if before is not None else 0
    if earlier and wanted.drain_by_ms > earlier - LATE_MS:
        wanted = replace(wanted, drain_by_ms=earlier)
    if before is not None and before.drained:
        wanted = replace(wanted, drained=True)
    if not wanted.reason and before is not None:
        wanted = replace(wanted, reason=before.reason)
    if wanted == before:
        return
    turn.put(replace(node, cordon=wanted))
    seconds = (wanted.drain_by_ms - turn.at) / 1000
    turn.tell("NodeDraining", f"{cause}; to be empty within {max(0.0, seconds):g} s", node=node.name)
    gangs = turn.state.gangs
    # A gang whose attempt is superseded is on its way already, and one of a job that is to end as well.
    current = dict.fromkeys(
        (worker.job_id, worker.gang)
        for worker in turn.state.live_on(node.name)
        if turn.state.jobs[worker.job_id].ending is None
        and worker.attempt == gangs[worker.job_id, worker.gang].attempt
    )
    going = [gangs[key] for key in current]
    stopping.ask_to_restart(turn, going, said, cause, wanted.drain_by_ms)


def note_drained(turn: Turn) -> None:
    """Say of which nodes the last worker is gone."""
    for name in list(turn.state.draining):
        node = turn.state.nodes[name]
        if name not in turn.state.on_node and not node.strays and node.cordon is not None:
            turn.put(replace(node, cordon=replace(node.cordon, drained=True)))
            turn.tell("NodeDrained", "nothing runs there any more", node=name)


def _tail(reason: str) -> str:
    return f": {reason}" if reason else ""
