"""Streams between agents and the coordinator, as gRPC gives them: in order and whole, until they break.

A break loses a suffix of what is under way in either direction, and each side learns of it in its own time. A
partition holds a direction back; when it lasts longer than the keepalive, both sides give the stream up.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.sim.world import World

UP, DOWN = "up", "down"
"""From the agent; to the agent."""
KEEPALIVE_MS = 6_000
_END = object()


@dataclass
class Network:
    """How bad it is: delays, and which directions of which nodes are cut."""

    world: World
    slowest_ms: int = 5
    cut: set[tuple[str, str]] = field(default_factory=set)
    streams: list["Stream"] = field(default_factory=list)

    def open(self, node: str) -> "Stream":
        self.streams = [stream for stream in self.streams if not stream.over]
        stream = Stream(self, node)
        self.streams.append(stream)
        if (node, UP) in self.cut or (node, DOWN) in self.cut:
            self.world.at(KEEPALIVE_MS, self._give_up, stream)
        return stream

    def partition(self, node: str, directions: tuple[str, ...]) -> None:
        for direction in directions:
            self.cut.add((node, direction))
        for stream in self.streams:
            if stream.node == node:
                self.world.at(KEEPALIVE_MS, self._give_up, stream)

    def heal(self, node: str) -> None:
        self.cut -= {(node, UP), (node, DOWN)}
        for stream in self.streams:
            if stream.node == node:
                stream.pump(UP)
                stream.pump(DOWN)

    def _give_up(self, stream: "Stream") -> None:
        if self.cut & {(stream.node, UP), (stream.node, DOWN)}:
            stream.snap()


class Stream:
    """One stream. Each side sets what hears of messages and of the end."""

    def __init__(self, network: Network, node: str) -> None:
        self.node = node
        self._network = network
        self._way: dict[str, deque[tuple[int, Any]]] = {UP: deque(), DOWN: deque()}
        self._hears: dict[str, Callable[[Any], None]] = {}
        self._ends: dict[str, Callable[[], None]] = {}
        self._shut = {UP: False, DOWN: False}

    def listen(self, direction: str, hears: Callable[[Any], None], ends: Callable[[], None]) -> None:
        """Say what is to be done with messages of a direction, and with its end."""
        self._hears[direction], self._ends[direction] = hears, ends

    @property
    def over(self) -> bool:
        return all(self._shut.values()) and not any(self._way.values())

    def send(self, direction: str, message: Any) -> None:
        if not self._shut[direction]:
            self._push(direction, message)

    def close(self, direction: str) -> None:
        """The sender of this direction ends the stream: what it sent still arrives; it hears nothing more."""
        other = UP if direction == DOWN else DOWN
        self._way[other].clear()
        self._shut[other] = True
        self._hears.pop(other, None)
        self._ends.pop(other, None)
        if not self._shut[direction]:
            self._shut[direction] = True
            self._push(direction, _END)

    def snap(self) -> list[Any]:
        """Break it: a suffix of each direction is lost. Returns what was lost on the way down."""
        lost: list[Any] = []
        for direction in (UP, DOWN):
            if self._shut[direction]:
                continue
            self._shut[direction] = True
            way = self._way[direction]
            keep = self._network.world.between(0, len(way))
            while len(way) > keep:
                message = way.pop()[1]
                if direction == DOWN:
                    lost.insert(0, message)
            self._push(direction, _END)
        return lost

    def pump(self, direction: str) -> None:
        """Deliver what is due."""
        world, way = self._network.world, self._way[direction]
        while way and (self.node, direction) not in self._network.cut:
            due, message = way[0]
            if due > world.now:
                world.at(due - world.now, self.pump, direction)
                return
            way.popleft()
            self._deliver(direction, message)

    def _push(self, direction: str, message: Any) -> None:
        world, way = self._network.world, self._way[direction]
        due = world.now + world.between(0, self._network.slowest_ms)
        if way:
            due = max(due, way[-1][0])
        way.append((due, message))
        world.at(due - world.now, self.pump, direction)

    def _deliver(self, direction: str, message: Any) -> None:
        if message is _END:
            self._shut[direction] = True
            ends = self._ends.pop(direction, None)
            self._hears.pop(direction, None)
            if ends is not None:
                ends()
        elif direction in self._hears:
            self._hears[direction](message)
