"""Which node each worker goes to: all of a request, or none of it with the reason."""

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass

from holdfast_coordinator.core.jobspec import Resources
from holdfast_coordinator.core.model import Node, NodeState, Worker
from holdfast_coordinator.core.state import State

_NO_NODE = "no node is ready; start an agent"


@dataclass(slots=True)
class Room:
    """What is free on one node."""

    node: Node
    slots: int
    cpus: float
    memory_bytes: int
    gpus: list[int]

    @classmethod
    def of(cls, node: Node, live: Iterable[tuple[Worker, Resources]]) -> "Room":
        """Count what the live workers on a node leave free."""
        room = cls(
            node,
            node.capacity.slots,
            node.capacity.cpus,
            node.capacity.memory_bytes,
            list(range(node.capacity.gpus)),
        )
        for worker, needs in live:
            room.slots -= 1
            room.cpus -= needs.cpus
            room.memory_bytes -= needs.memory_bytes
            room.gpus = [gpu for gpu in room.gpus if gpu not in worker.gpus]
        return room

    def fits(self, needs: Resources) -> int:
        """How many such workers fit."""
        count = self.slots
        if needs.cpus > 0:
            count = min(count, int((self.cpus + 1e-9) / needs.cpus))
        if needs.memory_bytes > 0:
            count = min(count, self.memory_bytes // needs.memory_bytes)
        if needs.gpus > 0:
            count = min(count, len(self.gpus) // needs.gpus)
        return max(0, count)

    def take(self, needs: Resources) -> tuple[int, ...]:
        """Take room for one worker; return the GPUs it gets."""
        gpus, self.gpus = tuple(self.gpus[: needs.gpus]), self.gpus[needs.gpus :]
        self.slots -= 1
        self.cpus -= needs.cpus
        self.memory_bytes -= needs.memory_bytes
        return gpus


@dataclass(frozen=True, slots=True)
class Spot:
    """Where one rank goes."""

    rank: int
    node: str
    gpus: tuple[int, ...]


def usable(node: Node) -> bool:
    """Tell whether new work may be placed on a node."""
    return node.state is NodeState.READY and not node.strays and bool(node.session) and node.cordon is None


def rooms(state: State, avoid: Container[str] = ()) -> list[Room]:
    """What is free on the nodes that may be used now."""
    return [
        Room.of(node, [(w, state.jobs[w.job_id].spec.resources) for w in state.live_on(node.name)])
        for node in state.nodes.values()
        if usable(node) and node.name not in avoid
    ]


def waits(state: State, shortage: str) -> str:
    """Why a job waits, in one sentence."""
    cordoned = sum(node.cordon is not None for node in state.nodes.values())
    there = sum(node.cordon is not None and node.state is NodeState.READY for node in state.nodes.values())
    if shortage == _NO_NODE and there:
        kept = "1 that is ready is" if there == 1 else f"{there} that are ready are"
        return f"waits for room: no node takes work: {kept} cordoned; uncordon one, or start an agent"
    return f"waits for room: {shortage}" + (f" ({cordoned} cordoned)" if cordoned else "")


def no_port(node: str) -> str:
    """What a gang is short of whose ranks have nowhere to meet."""
    return f"node {node} has no free port to offer yet"


def place(ranks: Sequence[Worker], needs: Resources, rooms: Sequence[Room]) -> tuple[tuple[Spot, ...], str]:
    """Place all the ranks, or none and say what is short.

    A rank goes back to its node where that still has room, for its files are warm there. The others go, in order
    of rank, to the nodes with the most room, so that a gang is spread over as few nodes as can be.
    """
    total = sum(room.fits(needs) for room in rooms)
    if total < len(ranks):
        return (), _shortage(len(ranks), needs, rooms)
    by_name = {room.node.name: room for room in rooms}
    chosen: dict[int, Spot] = {}
    for worker in ranks:
        home = by_name.get(worker.node)
        if home is not None and home.fits(needs):
            chosen[worker.rank] = Spot(worker.rank, worker.node, home.take(needs))
    order = sorted(rooms, key=lambda room: (-room.fits(needs), room.node.name))
    rest = iter([worker.rank for worker in ranks if worker.rank not in chosen])
    rank = next(rest, None)
    for room in order:
        while rank is not None and room.fits(needs):
            chosen[rank] = Spot(rank, room.node.name, room.take(needs))
            rank = next(rest, None)
    return tuple(chosen[worker.rank] for worker in ranks), ""


def _shortage(count: int, needs: Resources, rooms: Sequence[Room]) -> str:
    if not rooms:
        return _NO_NODE
    nodes = "1 node" if len(rooms) == 1 else f"{len(rooms)} nodes"
    wanted: list[tuple[str, float, float, str]] = [
        ("slots", count, sum(max(0, room.slots) for room in rooms), "")
    ]
    if needs.cpus:
        wanted.append(("cpus", count * needs.cpus, sum((max(0.0, room.cpus) for room in rooms), 0.0), ""))
    if needs.memory_bytes:
        gib = 2**30
        free = sum(max(0, room.memory_bytes) for room in rooms)
        wanted.append(("memory", count * needs.memory_bytes / gib, free / gib, " GiB"))
    if needs.gpus:
        wanted.append(("gpus", count * needs.gpus, sum(len(room.gpus) for room in rooms), ""))
    short = [
        f"{what}: needs {need:g}{unit}, {free:g}{unit} free"
        for what, need, free, unit in wanted
        if need > free
    ]
    if short:
        return f"short of {'; '.join(short)} on {nodes}"
    each = ", ".join(f"{what} {need / count:g}{unit}" for what, need, _, unit in wanted)
    return f"no room for {count} workers of {each} on {nodes}: what is free is in pieces too small"
