"""A store that forgets when the process ends: for simulation, and to hold the contract suite to its word."""

from collections.abc import Sequence

from holdfast_coordinator.core.effects import Append, DropHistory, SetEpoch, Write
from holdfast_coordinator.core.model import Commit, Entry
from holdfast_coordinator.core.state import Settings, State
from holdfast_coordinator.store.api import DeposedError


class MemoryStore:
    """Rows are frozen, so that keeping them is keeping a copy."""

    def __init__(self) -> None:
        self._state = State()
        self._entries: list[Entry] = []
        self._commits: list[Commit] = []

    def load(self, settings: Settings) -> State:
        """Read everything."""
        state = State(settings, epoch=self._state.epoch, next_seq=self._state.next_seq)
        for row in self._state.rows():
            state.put(row)
        return state

    def commit(self, writes: Sequence[Write], *, epoch: int) -> None:
        """Apply the writes."""
        stored = self._state.epoch
        claims = [write.epoch for write in writes if isinstance(write, SetEpoch)]
        if (claims and max(claims) <= stored) or epoch != (max(claims) if claims else stored):
            raise DeposedError(f"epoch {epoch} writes into a store of epoch {stored}")
        self._state.apply(writes)
        for write in writes:
            match write:
                case Append(Entry() as entry):
                    self._entries.append(entry)
                case Append(Commit() as commit):
                    self._commits.append(commit)
                case DropHistory(job_id):
                    self._commits = [commit for commit in self._commits if commit.job_id != job_id]
                case _:
                    pass

    def entries(self, *, job_id: str = "", after: int = 0, limit: int) -> list[Entry]:
        """Lines of the timeline."""
        found = [e for e in self._entries if e.seq > after and job_id in ("", e.job_id)]
        return found[:limit]

    def commits(self, job_id: str, *, limit: int, before: tuple[int, int] | None = None) -> list[Commit]:
        """Commits of a job, newest first."""
        found = [
            c for c in self._commits if c.job_id == job_id and (before is None or (c.step, c.gang) < before)
        ]
        return sorted(found, key=lambda c: (c.step, c.gang), reverse=True)[:limit]

    def close(self) -> None:
        """Nothing to let go of."""
