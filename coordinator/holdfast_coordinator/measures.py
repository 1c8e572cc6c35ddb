"""What a coordinator counts of its own work since it was started."""

from collections import Counter
from collections.abc import Iterable

from holdfast.measures import LONG_SECONDS, Histogram
from holdfast_coordinator.core.effects import Append, Delete, Put, Write
from holdfast_coordinator.core.model import Commit, Entry, Gang, Prepared
from holdfast_coordinator.core.state import State

CHARGED, FREE = "charged", "free"


class Measures:
    """Kept by the engine, with no more than a few microseconds for a batch."""

    def __init__(self) -> None:
        self.batch_s = Histogram()
        """From taking the items of a round until what they bring about is seen."""
        self.store_s = Histogram()
        """Of a transaction."""
        self.queue_s = Histogram()
        """That requests and questions waited in the inbox."""
        self.checkpoint_s = Histogram(LONG_SECONDS)
        """From the first prepared shard of a step to its commit."""
        self.commits = 0
        self.heartbeats = 0
        self.events: Counter[str] = Counter()
        """By kind."""
        self.restarts: Counter[str] = Counter({CHARGED: 0, FREE: 0})
        """Whether they were charged to the restart budget."""
        self._streaks: dict[tuple[str, int], tuple[int, tuple[int, ...]]] = {}
        self._preparing: dict[tuple[str, int], tuple[int, int]] = {}
        """Of a gang: the step that it prepares, and when that began."""

    def begin(self, state: State) -> None:
        """Take what is as given."""
        self._streaks = {key: (gang.restarts, gang.streak) for key, gang in state.gangs.items()}
        self._preparing.clear()

    def note(self, writes: Iterable[Write], now: int) -> None:
        """Count what has become durable."""
        for write in writes:
            match write:
                case Append(Entry(kind=kind)):
                    self.events[kind] += 1
                case Append(Commit() as commit):
                    self.commits += 1
                    step, began = self._preparing.pop((commit.job_id, commit.gang), (-1, 0))
                    if step == commit.step:
                        self.checkpoint_s.observe(max(0, now - began) / 1000)
                case Put(Prepared() as shard):
                    key = shard.job_id, shard.gang
                    if self._preparing.get(key, (-1, 0))[0] != shard.step:
                        self._preparing[key] = shard.step, now
                case Put(Gang() as gang):
                    self._note_gang(gang)
                case Delete(Gang() as gang):
                    self._streaks.pop((gang.job_id, gang.index), None)
                    self._preparing.pop((gang.job_id, gang.index), None)
                case _:
                    pass

    def _note_gang(self, gang: Gang) -> None:
        key = gang.job_id, gang.index
        restarts, streak = self._streaks.get(key, (0, ()))
        if gang.restarts > restarts:
            charged = bool(gang.streak) and gang.streak != streak
            self.restarts[CHARGED if charged else FREE] += gang.restarts - restarts
        self._streaks[key] = gang.restarts, gang.streak
