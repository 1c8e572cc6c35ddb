"""A rank's checkpoints from end to end: what to resume from, stage, submit, await.

Staging is synchronous. The answer is awaited behind the training loop, until the next checkpoint is due; then for
PATIENCE seconds more. After that training goes on, and the newer checkpoint stands in for the one that got no answer:
a control plane that is away stops no worker, and neither does another rank of the gang that could not write its file.
Patience wears off while nothing is answered, so that an hour's outage costs seconds; it never ends, because a rank
that is ahead of its gang must wait a little, or the gang's newest shards would never be of one step.
"""

import contextlib
from typing import Any, Protocol

from holdfast.worker.alone import Alone
from holdfast.worker.checkpoint import Checkpoints, Owner
from holdfast.worker.errors import CheckpointError
from holdfast.worker.identity import Identity
from holdfast.worker.manifest import Commit, Shard
from holdfast.worker.report import say
from holdfast.worker.storage import LocalStorage, local_root

PATIENCE = 10.0
"""How many seconds something is awaited before a sentence about it is written, or training goes on."""
LEAST_PATIENCE = 0.25
"""The same when many checkpoints in a row got no answer."""


class Committer(Protocol):
    """Who turns shards into commits: `session.Link` or `alone.Alone`."""

    def submit(self, step: int, shard: Shard) -> None:
        """Say that the shard of `step` is durable; returns at once."""

    def wait(self, step: int, timeout: float | None = None) -> bool:
        """Wait until that shard is answered. False when `timeout` seconds have gone by first."""

    def committed(self, step: int) -> bool:
        """The checkpoint of `step`, or of a later one, is committed."""

    def resume(self, timeout: float | None = None) -> Commit | None:
        """The commit to resume from. Raises TimeoutError."""

    def close(self) -> None:
        """Hang up."""

    def abandon(self) -> None:
        """In a forked child: let go of what is the parent's without a word on it."""


class Saver:
    """Made when a program first restores or takes a checkpoint; used by its training thread."""

    def __init__(self, identity: Identity) -> None:
        """Raises CheckpointError where checkpoints are impossible."""
        if not identity.supervised and not identity.alone:
            world = identity.world_size
            raise CheckpointError(
                f"{world} ranks need holdfast to commit their checkpoints together: "
                f"start them with `holdfast run -n {world} -- python train.py`"
            )
        self._top = local_root(identity.checkpoint_uri)
        self._held = contextlib.ExitStack()
        if identity.alone:
            self._held.enter_context(self._storage(identity, 0).claim())
            newest = self._checkpoints(identity, 0).newest()
            identity = identity._replace(resume_step=newest.step if newest else None)
        self._identity = identity
        self._own_storage = self._storage(identity, identity.rank)
        self._own = Checkpoints(_owner(identity, identity.rank), self._own_storage)
        self._committer: Committer | None = None
        self._in_flight: int | None = None
        self._patience = PATIENCE
        self.last_step = -1 if identity.resume_step is None else identity.resume_step
        """The newest step that is saved, or was committed before; only newer ones can be saved."""

    def resume_point(self) -> Commit | None:
        """The commit to resume from, its manifest published. Raises CheckpointError when it cannot be known."""
        step = self._identity.resume_step
        if step is None:
            return None
        commit = self._own.published(step)
        if commit is None:
            # It was committed, but whoever was to publish it died first.
            commit = self._ask()
            if commit is None or commit.step != step:
                raise CheckpointError(
                    f"this worker is to resume from step {step}, of which its agent knows nothing"
                )
            self._own.publish(commit)
        return commit

    def load(self, commit: Commit, default: Any) -> tuple[Any, str]:
        """This rank's state and cursor in `commit`. Raises CheckpointCorrupt and CheckpointMismatch."""
        state = self._own.load(commit, self._identity.rank, default)
        shard = commit.shard_of(self._identity.rank)
        return state, shard.cursor if shard else ""

    def save(self, step: int, state: Any, cursor: str) -> None:
        """Stage and submit a checkpoint. Raises OSError when it cannot be written."""
        committer = self._open()
        if self._in_flight is not None:
            self._wait(committer, self._in_flight, step)
        shard = self._own.save(step, state, cursor)
        self.last_step = self._in_flight = step
        committer.submit(step, shard)

    def settle(self, timeout: float | None = None) -> bool:
        """Wait for the answer to the last checkpoint. False when `timeout` seconds have gone by first."""
        if self._in_flight is None:
            return True
        committer = self._open()
        patience = PATIENCE if timeout is None else min(timeout, PATIENCE)
        if committer.wait(self._in_flight, patience):
            return True
        say(f"waiting for the checkpoint of step {self._in_flight} to be committed")
        return committer.wait(self._in_flight, None if timeout is None else timeout - patience)

    def committed(self, step: int) -> bool:
        """The checkpoint of `step`, or of a later one, is committed."""
        before = self._identity.resume_step
        return (before is not None and step <= before) or (
            self._committer is not None and self._committer.committed(step)
        )

    def places(self) -> list[Checkpoints]:
        """Where the checkpoints of each rank lie, for reading."""
        identity = self._identity
        if not identity.independent:
            return [self._own] * identity.world_size
        return [self._checkpoints(identity, rank) for rank in range(identity.world_size)]

    def close(self, timeout: float) -> None:
        """Wait for the answer to the last checkpoint, at most `timeout` seconds, and let go of everything."""
        if not self.settle(timeout):
            say(f"the checkpoint of step {self._in_flight} was not answered in time; it may yet be committed")
        if self._committer is not None:
            self._committer.close()
        self._own_storage.close()
        self._held.close()

    def abandon(self) -> None:
        """In a forked child: let go of what is the parent's."""
        if self._committer is not None:
            self._committer.abandon()
        self._held.close()

    def _wait(self, committer: Committer, before: int, step: int) -> None:
        """Wait for the answer to the checkpoint before this one, for as long as there is patience."""
        if committer.wait(before, self._patience):
            self._patience = PATIENCE
            return
        if self._patience == PATIENCE:
            say(
                f"the checkpoint of step {before} is still not committed; "
                f"training goes on, and step {step} takes its place"
            )
        self._patience = max(LEAST_PATIENCE, self._patience / 4)

    def _ask(self) -> Commit | None:
        committer = self._open()
        try:
            return committer.resume(PATIENCE)
        except TimeoutError as error:
            say(f"waiting to be told what to resume from: {error}")
            return committer.resume()

    def _open(self) -> Committer:
        if self._committer is None:
            self._committer = self._connect()
        return self._committer

    def _connect(self) -> Committer:
        identity = self._identity
        if identity.alone:
            return Alone(identity.job_id, identity.attempt, self._own.publish)
        if identity.socket is None:
            raise CheckpointError(
                "HOLDFAST_SOCKET is not set: the agent that commits checkpoints cannot be reached"
            )
        from holdfast.worker.session import Link

        return Link(identity.socket, identity.job_id, identity.rank, identity.attempt, self._own.publish)

    def _checkpoints(self, identity: Identity, rank: int) -> Checkpoints:
        return Checkpoints(_owner(identity, rank), self._storage(identity, rank))

    def _storage(self, identity: Identity, rank: int) -> LocalStorage:
        below = f"{identity.job_id}/rank-{rank:05}" if identity.independent else identity.job_id
        return LocalStorage(self._top, below, rank, identity.attempt)


def _owner(identity: Identity, rank: int) -> Owner:
    return Owner(identity.job_id, rank, identity.attempt)
