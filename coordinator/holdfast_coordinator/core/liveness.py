"""When a node is presumed alive: READY, then SUSPECT (nothing is killed), then LOST."""

from holdfast_coordinator.core.model import NodeState
from holdfast_coordinator.core.state import Settings

RECONNECT_MS_PER_NODE = 1
"""What reconnecting costs a new leader for each agent (measured on one core, grpc.aio)."""


SILENT_BREAK_MS = 5_000
"""A stream that breaks after so much silence was given up by whoever waited for an answer (wire.py: as long, at least),
and was not closed by a machine on which a process ended: that would have come between two heartbeats."""


def judge(
    silent_ms: int, *, connected: bool, settings: Settings, gone_after_ms: int = 0
) -> tuple[NodeState, str]:
    """Say what a node is after `silent_ms` without a word from it, and why. `gone_after_ms` is as in Node."""
    seconds = silent_ms / 1000
    if not connected and 0 < gone_after_ms <= silent_ms:
        return NodeState.LOST, "its stream broke, and its workers end with its agent, which did not come back"
    if silent_ms >= settings.lost_after_ms:
        return NodeState.LOST, f"not heard from for {seconds:.1f} s"
    if not connected:
        return NodeState.SUSPECT, "its stream broke"
    if silent_ms >= settings.suspect_after_ms:
        return NodeState.SUSPECT, f"not heard from for {seconds:.1f} s"
    return NodeState.READY, "heard from"


def gone_after(silent_ms: int, settings: Settings) -> int:
    """Give the silence after which a node is lost whose stream broke after `silent_ms` of it; 0: it says nothing.

    For nodes whose workers end with their agent. A network that swallows what is sent breaks no stream for a while; so
    one that breaks between two heartbeats was closed by the agent's machine, or by something in between. In the latter
    case the agent is back at once.
    """
    if silent_ms >= min(settings.suspect_after_ms, SILENT_BREAK_MS):
        return 0
    return max(0, silent_ms) + settings.gone_after_ms


def fresh_lease_ms(nodes: int) -> int:
    """Give every node this much beyond its lease when a leader takes over, so that it never mass-kills."""
    return nodes * RECONNECT_MS_PER_NODE


def heartbeat_interval_ms(nodes: int) -> int:
    """Pace the heartbeats: 1 s for a small fleet, growing to 5 s at 10,000 agents."""
    return min(5_000, 1_000 + nodes * 4_000 // 10_000)
