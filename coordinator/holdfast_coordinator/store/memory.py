"""A store that forgets when the process ends: for simulation, and to hold the contract suite to its word."""

from collections.abc import Sequence
from typing import TypeVar

from holdfast_coordinator.core.effects import Append, DropCommit, DropHistory, MarkDrained, Write
from holdfast_coordinator.core.model import Commit, Entry
from holdfast_coordinator.core.state import Settings, State
from holdfast_coordinator.store.api import StoreError, drained, fence

K = TypeVar("K")
V = TypeVar("V")


class MemoryStore:
    """Rows are frozen, so that keeping them is keeping a copy. For one thread."""

    def __init__(self) -> None:
        self._state = State()
        self._entries: dict[int, Entry] = {}
        self._commits: dict[tuple[str, int, int], Commit] = {}

    def load(self, settings: Settings) -> State:
        """Read everything."""
        state = State(settings, epoch=self._state.epoch, next_seq=self._state.next_seq)
        for row in self._state.rows():
            state.put(row)
        return state

    def commit(self, writes: Sequence[Write], *, epoch: int) -> None:
        """Apply the writes."""
        fence(self._state.epoch, writes, epoch)
        entries, commits = dict(self._entries), dict(self._commits)
        for write in writes:
            match write:
                case Append(Entry() as entry):
                    _append(entries, entry.seq, entry)
                case Append(Commit() as commit):
                    _append(commits, (commit.job_id, commit.step, commit.gang), commit)
                case DropHistory(job_id):
                    commits = {key: commit for key, commit in commits.items() if commit.job_id != job_id}
                case DropCommit(job_id, gang, step):
                    commits.pop((job_id, step, gang), None)
                case MarkDrained(job_id, gang, step, rank):
                    if (job_id, step, gang) in commits:
                        commits[job_id, step, gang] = drained(commits[job_id, step, gang], rank)
                case _:
                    pass
        self._state.apply(writes)
        self._entries, self._commits = entries, commits

    def entries(self, *, job_id: str = "", after: int = 0, limit: int) -> list[Entry]:
        """Lines of the timeline."""
        found = [
            entry for entry in self._entries.values() if entry.seq > after and job_id in ("", entry.job_id)
        ]
        return sorted(found, key=lambda entry: entry.seq)[:limit]

    def commits(self, job_id: str, *, limit: int, before: tuple[int, int] | None = None) -> list[Commit]:
        """Commits of a job, newest first."""
        found = [commit for commit in self._commits.values() if commit.job_id == job_id]
        found.sort(key=lambda commit: (commit.step, commit.gang), reverse=True)
        return [c for c in found if before is None or (c.step, c.gang) < before][:limit]

    def commit_upto(self, job_id: str, gang: int, step: int) -> Commit | None:
        """The newest commit of a gang at or below a step."""
        of_gang = [
            c for c in self._commits.values() if (c.job_id, c.gang) == (job_id, gang) and c.step <= step
        ]
        return max(of_gang, key=lambda commit: commit.step, default=None)

    def close(self) -> None:
        """Nothing to let go of."""


def _append(history: dict[K, V], key: K, item: V) -> None:
    if key in history:
        raise StoreError(f"{type(item).__name__} {key} is in the store already")
    history[key] = item
