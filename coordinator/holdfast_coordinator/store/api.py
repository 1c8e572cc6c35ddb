"""What the engine asks of a store. Synchronous: it is called from a thread of its own."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from holdfast_coordinator.core.effects import SetEpoch, Write
from holdfast_coordinator.core.model import Commit, Entry
from holdfast_coordinator.core.state import Settings, State


class StoreError(Exception):
    """The store can't do what was asked; nothing was written. The message is one sentence for the operator."""


class StoreFullError(StoreError):
    """No room on the disk."""


class StoreLockedError(StoreError):
    """Another coordinator has it open."""


class StoreTooNewError(StoreError):
    """A newer version of holdfast wrote it."""


class DeposedError(StoreError):
    """Another epoch has begun: this leader may write nothing (P7)."""


class Store(Protocol):
    """Durable rows, an epoch, and two histories.

    `load` and `commit` are called by one thread at a time; what reads a history by any, at any time.
    """

    def load(self, settings: Settings) -> State:
        """Read everything. Raises StoreError."""

    def commit(self, writes: Sequence[Write], *, epoch: int) -> None:
        """Apply the writes in one transaction, durable when this returns.

        `epoch` is the writer's, and must be the stored one; a SetEpoch among the writes raises the stored one first.
        Raises DeposedError when it is not, StoreFullError, StoreError (an item of a history that is there already
        among other things); nothing is written then.
        """

    def entries(self, *, job_id: str = "", after: int = 0, limit: int) -> list[Entry]:
        """Lines of the timeline with a higher seq than `after`, oldest first; of all jobs when none is named."""

    def commits(self, job_id: str, *, limit: int, before: tuple[int, int] | None = None) -> list[Commit]:
        """Commits of a job by (step, gang) descending, beginning below `before`."""

    def commit_upto(self, job_id: str, gang: int, step: int) -> Commit | None:
        """The newest commit of a gang at or below a step."""

    def close(self) -> None:
        """Let go of it."""


def fence(stored: int, writes: Sequence[Write], epoch: int) -> int:
    """The epoch that a store of epoch `stored` has after the writes of a leader of `epoch`. Raises DeposedError."""
    after = stored
    for write in writes:
        if isinstance(write, SetEpoch):
            if write.epoch <= after:
                raise DeposedError(
                    f"epoch {write.epoch} can't begin after epoch {after}: another coordinator leads"
                )
            after = write.epoch
    if epoch != after:
        raise DeposedError(f"epoch {epoch} is over, it is epoch {after} now: another coordinator leads")
    return after


def drained(commit: Commit, rank: int) -> Commit:
    """The commit with the file of a rank in the storage."""
    shards = (replace(each, local_only=False) if each.rank == rank else each for each in commit.shards)
    return replace(commit, shards=tuple(shards))
