"""When each node was heard from last, and what it said then that is in no store."""

from collections.abc import Collection, Iterable, Mapping

import structlog

from holdfast.v1 import agent_pb2, node_pb2
from holdfast_coordinator.core.model import Node

log = structlog.get_logger(__name__)


class Hearing:
    """What this leader has heard. Times are milliseconds since the Unix epoch."""

    def __init__(self) -> None:
        self._at: dict[str, int] = {}
        self._preloads: dict[str, tuple[str, agent_pb2.Preloads]] = {}

    @property
    def times(self) -> Mapping[str, int]:
        """When each node was heard from last."""
        return self._at

    def begin(self, nodes: Iterable[str], at: int) -> None:
        """Count all nodes as heard from at a time, and forget what was heard before."""
        self._at = dict.fromkeys(nodes, at)

    def note(self, node: str, at: int) -> None:
        """Note a sign of life."""
        self._at[node] = at

    def note_preloads(self, node: str, session: str, preloads: agent_pb2.Preloads) -> None:
        """Note what a node says that it has preloaded."""
        self._preloads[node] = session, preloads

    def preloads_of(self, node: Node) -> Iterable[node_pb2.Preload]:
        """What a node has preloaded, as it said last in the session that speaks for it."""
        session, found = self._preloads.get(node.name, ("", None))
        return found.preloads if found is not None and session == node.session else ()

    def forgive(self, pause_ms: int) -> None:
        """Count no silence while this process itself stood still: heartbeats of that time are not read yet."""
        log.warning("this process stood still", ms=pause_ms)
        self._at = {node: at + pause_ms for node, at in self._at.items()}

    def forget(self, nodes: Collection[str], before: int) -> None:
        """Keep nothing of who is none of the nodes, and has not just said Hello."""
        if len(self._at) > len(nodes):
            self._at = {name: at for name, at in self._at.items() if name in nodes or at > before}
            self._preloads = {name: said for name, said in self._preloads.items() if name in self._at}
