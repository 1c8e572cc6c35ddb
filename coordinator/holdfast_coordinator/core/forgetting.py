"""Nodes that are gone for good: forgotten when a user says so, or after a time.

Nothing hangs on the row of a lost node: it has no session, and no attempt that is accepted, for those that were there
were superseded when it was lost. An agent that comes back under its name is new, and what it still runs is told to
stop, as what nobody expects (P2).
"""

from holdfast_coordinator.core.effects import Problem
from holdfast_coordinator.core.events import NodeForgetRequested
from holdfast_coordinator.core.exclusion import lift
from holdfast_coordinator.core.model import Node, NodeState
from holdfast_coordinator.core.turn import Turn


def requested(turn: Turn, event: NodeForgetRequested) -> None:
    """Do what a user asks for."""
    node = turn.find_node(event.node)
    if node is None:
        return
    if node.state is not NodeState.LOST:
        remedy = "drain it, stop its agent, and wait until the node is lost"
        turn.refuse(Problem.FAILED_PRECONDITION, f"node {node.name} is {node.state}, not lost", remedy)
        return
    _forget(turn, node, f"by its user; it was lost: {node.reason}")


def when_due(turn: Turn, node: Node) -> None:
    """Forget a lost node that nobody has waited for that long.

    Not one that a user cordoned: that it is to take no work would be forgotten with it. A notice of its agent is no
    such word, for it ends with the agent.
    """
    after_ms, lost_for_ms = turn.state.settings.forget_after_ms, turn.at - node.lost_ms
    kept = node.cordon is not None and not node.cordon.by_notice
    if after_ms and lost_for_ms >= after_ms and not kept:
        _forget(turn, node, f"lost for {_time(lost_for_ms)}: {node.reason}")


def _forget(turn: Turn, node: Node, why: str) -> None:
    turn.delete(node)
    turn.tell("NodeForgotten", why, node=node.name)
    lift(turn, node.name, "forgotten")


def _time(ms: int) -> str:
    return f"{ms / 3_600_000:.1f} h" if ms >= 3_600_000 else f"{ms / 1000:.0f} s"
