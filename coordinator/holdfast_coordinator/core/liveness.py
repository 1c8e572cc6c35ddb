"""When a node is presumed alive: READY, then SUSPECT (nothing is killed), then LOST."""

from holdfast_coordinator.core.model import NodeState
from holdfast_coordinator.core.state import Settings

RECONNECT_MS_PER_NODE = 1
"""What reconnecting costs a new leader for each agent (measured on one core, grpc.aio)."""


def judge(silent_ms: int, *, connected: bool, settings: Settings) -> tuple[NodeState, str]:
    """Say what a node is after `silent_ms` without a word from it, and why."""
    seconds = silent_ms / 1000
    if silent_ms >= settings.lost_after_ms:
        return NodeState.LOST, f"not heard from for {seconds:.1f} s"
    if not connected:
        return NodeState.SUSPECT, "its stream broke"
    if silent_ms >= settings.suspect_after_ms:
        return NodeState.SUSPECT, f"not heard from for {seconds:.1f} s"
    return NodeState.READY, "heard from"


def fresh_lease_ms(nodes: int) -> int:
    """Give every node this much beyond its lease when a leader takes over, so that it never mass-kills."""
    return nodes * RECONNECT_MS_PER_NODE


def heartbeat_interval_ms(nodes: int) -> int:
    """Pace the heartbeats: 1 s for a small fleet, growing to 5 s at 10,000 agents."""
    return min(5_000, 1_000 + nodes * 4_000 // 10_000)
