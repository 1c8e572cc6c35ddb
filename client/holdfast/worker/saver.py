"""A rank's checkpoints from end to end: what to resume from, stage, write, submit, await.

Training waits for one copy of its state. A thread writes it, and the answer is awaited, until the next checkpoint is
due: a rank has one under way at a time. Then training waits for it to be written, however long that takes, because
the ranks of a gang must save the same steps; and for its answer for PATIENCE seconds. After that training goes on,
and the newer checkpoint is answered for: a control plane that is away stops no worker, and neither does another rank of
the gang that could not write its file. Patience wears off while nothing is answered, so that an hour's outage costs
seconds; it never ends, because a rank that is ahead of its gang must wait a little: of one that is far ahead the
coordinator keeps only some of the steps to which the others come.
"""

import contextlib
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from holdfast.storage.api import StorageError, Unreachable
from holdfast.worker import place
from holdfast.worker.alone import Alone
from holdfast.worker.background import BackgroundWriter, Save
from holdfast.worker.checkpoint import Checkpoints, packed
from holdfast.worker.errors import CheckpointCorrupt, CheckpointError
from holdfast.worker.identity import Identity
from holdfast.worker.layout import manifest_name
from holdfast.worker.manifest import Commit, Shard
from holdfast.worker.report import say
from holdfast.worker.spool import SpooledStorage
from holdfast.worker.staging import Staging

if TYPE_CHECKING:
    from holdfast.worker.session import Link

PATIENCE = 10.0
"""How many seconds something is awaited before a sentence about it is written, or training goes on."""
LEAST_PATIENCE = 0.25
"""The same when many checkpoints in a row got no answer."""
FIRST_PAUSE = 1.0
LAST_PAUSE = 30.0
"""Seconds between two tries to read from a storage that cannot be reached."""

HELD_PATIENCE = 120.0
"""How many seconds a worker waits for its shard to come to the storage from another machine."""

T = TypeVar("T")

Load = Callable[[Checkpoints, Commit, int], Any]
"""Reads the state of a commit, that of this rank where each has one. Raises CheckpointCorrupt or CheckpointMismatch."""


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

    def save_failed(self, step: int, message: str) -> None:
        """Tell that the shard of `step` could not be written; returns at once."""

    def corrupt(self, step: int, message: str) -> None:
        """Tell that the commit of `step` failed verification; returns when nobody will resume from it any more."""

    def drained(self, step: int, timeout: float) -> bool:
        """Tell that the shard of `step`, which was held on this machine, is in the storage.

        False when that is not known after `timeout` seconds to be durable; it is told again then.
        """

    def dropped(self, step: int) -> None:
        """Tell that the files of `step` are gone; returns at once."""

    def close(self) -> None:
        """Hang up."""

    def abandon(self) -> None:
        """In a forked child: let go of what is the parent's without a word on it."""


class Resumed(NamedTuple):
    """What a rank resumes from."""

    step: int
    state: Any
    cursor: str


class Saver:
    """Made when a program first restores or takes a checkpoint; used by its training thread."""

    def __init__(self, identity: Identity, link: "Callable[[], Link] | None" = None) -> None:
        """`link` gives the one to the agent; None: there is none.

        Raises CheckpointError where checkpoints are impossible.
        """
        self._link = link
        if not identity.supervised and not identity.alone:
            world = identity.world_size
            raise CheckpointError(
                f"{world} ranks need holdfast to commit their checkpoints together: "
                f"start them with `holdfast run -n {world} -- python train.py`"
            )
        self._held = contextlib.ExitStack()
        try:
            if identity.alone:
                identity = self._held.enter_context(place.claimed(identity))
        except (OSError, StorageError) as error:
            raise CheckpointError(
                f"checkpoints cannot be kept in {identity.checkpoint_uri}: {error}"
            ) from error
        self._identity = identity
        self._committer: Committer | None = None
        self._connecting = threading.Lock()
        self._staging = Staging()
        self._writer = BackgroundWriter(self._write, self._on_failed)
        self._in_flight: int | None = None
        self._patience = PATIENCE
        self._swept = False
        self._resumed = identity.resume_step
        try:
            # From here on its thread may report what it has brought to the storage.
            self._storage = place.for_writing(identity, self._on_drained)
        except StorageError as error:
            raise CheckpointError(str(error)) from error
        self._own = Checkpoints(place.owner(identity, identity.rank), self._storage)
        if identity.alone:
            newest = _patiently(self._own.newest)
            self._resumed = newest.step if newest else None
        self.last_step = -1 if self._resumed is None else self._resumed
        """The newest step that is saved, or was committed before; only newer ones can be saved."""

    def restore(self, load: Load) -> Resumed | None:
        """What this rank resumes from, read by `load`; None when there is nothing.

        A commit that fails verification twice is set aside. Outside holdfast the one before it is taken; inside, all
        ranks must resume from the same, so CheckpointCorrupt is raised for the restart that the coordinator has
        ordered by then. Raises CheckpointMismatch, and CheckpointError when it cannot be known what to resume from.
        """
        set_aside = False
        while (commit := self._resume_point()) is not None:
            try:
                found = _load(load, self._own, commit, self._identity.rank)
            except CheckpointCorrupt as error:
                self._set_aside(commit, error)
                set_aside = True
            else:
                self.last_step = commit.step
                return found
        if set_aside:
            say("no valid checkpoint is left: training begins anew")
        return self._from_another_job(load) if self._identity.resume_from else None

    def save(
        self, step: int, value: Any, cursor: str, metrics: dict[str, float], *, wait: bool = False
    ) -> None:
        """Stage a checkpoint and write it behind the caller's back; with `wait`, write and submit it here.

        Raises TypeError when the state holds what a checkpoint cannot and, with `wait`, OSError.
        """
        what = packed(value, cursor, metrics)
        self._make_way(step)
        self._open()
        if wait:
            self._write(Save(step, what))
            self.last_step = self._in_flight = step
            return
        self.last_step = self._in_flight = step
        try:
            self._writer.give(Save(step, what._replace(arrays=self._staging.copy(what.arrays))))
        except (OSError, MemoryError) as error:
            say(
                f"there is no memory to copy the state aside ({error}); training waits while step {step} is written"
            )
            self._writer.give(Save(step, what))
            self._writer.hurry()
            self._writer.wait()

    def settle(self, timeout: float | None = None) -> bool:
        """Wait until the last checkpoint is written and answered. False when `timeout` seconds have gone by first."""
        if self._in_flight is None:
            return True
        patience = PATIENCE if timeout is None else min(timeout, PATIENCE)
        if self._answered(self._in_flight, patience):
            return True
        say(f"waiting for the checkpoint of step {self._in_flight} to be committed")
        return self._answered(self._in_flight, None if timeout is None else timeout - patience)

    def committed(self, step: int) -> bool:
        """The checkpoint of `step`, or of a later one, is committed."""
        return (self._resumed is not None and step <= self._resumed) or (
            self._committer is not None and self._committer.committed(step)
        )

    def places(self) -> list[Checkpoints]:
        """Where the checkpoints of each rank lie, for reading."""
        identity = self._identity
        if not identity.independent:
            return [self._own] * identity.world_size
        return [
            self._own
            if rank == identity.rank
            else Checkpoints(place.owner(identity, rank), place.for_reading(identity, rank))
            for rank in range(identity.world_size)
        ]

    def close(self, timeout: float) -> None:
        """Wait until the last checkpoint is written, answered and in its storage; let go of everything.

        After `timeout` seconds it is not tried again, and no answer is awaited any more.
        """
        end = time.monotonic() + timeout
        self._writer.wait(timeout)
        self._writer.hurry()
        self._writer.wait()
        if not self.settle(_until(end)):
            say(f"the checkpoint of step {self._in_flight} was not answered in time; it may yet be committed")
        self._writer.close(timeout)
        if isinstance(self._storage, SpooledStorage):
            self._storage.finish(_until(end))
        if self._committer is not None:
            self._committer.close()
        self._storage.close()
        self._held.close()

    def abandon(self) -> None:
        """In a forked child: let go of what is the parent's."""
        if self._committer is not None:
            self._committer.abandon()
        self._held.close()

    def _resume_point(self) -> Commit | None:
        """The commit to resume from. Raises CheckpointError when it cannot be known."""
        if self._identity.alone:
            commit = self._newest()
            self._resumed = commit.step if commit else None
            return commit
        step = self._resumed
        if step is None:
            return None
        try:
            commit = self._own.published(step)
        except OSError as error:
            say(f"the manifest of step {step} cannot be read, and its record does as well: {error}")
            commit = None
        return commit or self._published_anew(step)

    def _newest(self) -> Commit | None:
        """Outside holdfast: the newest commit, all newer ones whose manifests are corrupt set aside."""
        for step in _patiently(self._own.steps):
            try:
                commit = _twice(partial(self._own.manifest, step))
            except CheckpointCorrupt as error:
                say(f"the checkpoint of step {step} is set aside: {error}")
                _patiently(partial(self._own.quarantine_manifest, step))
            else:
                if commit is not None:
                    return commit
        return None

    def _published_anew(self, step: int) -> Commit:
        """A commit without a manifest: whoever was to publish it died first."""
        commit = self._ask()
        if commit is None or commit.step != step:
            raise CheckpointError(
                f"this worker is to resume from step {step}, of which its agent knows nothing"
            )
        with contextlib.suppress(OSError):  # where nothing can be asked the record has to do
            if self._own.is_quarantined(commit):
                self._report(
                    commit, CheckpointCorrupt(manifest_name(step), None, "a manifest", "one set aside")
                )
        try:
            self._own.publish(commit)
        except FileExistsError:
            raise
        except OSError as error:
            say(f"the manifest of step {step} could not be written, and its record does as well: {error}")
        return commit

    def _set_aside(self, commit: Commit, error: CheckpointCorrupt) -> None:
        """Quarantine a commit. Raises the error where others have to know of it before anything is resumed from."""
        say(f"the checkpoint of step {commit.step} is set aside: {error}")
        try:
            _patiently(partial(self._own.quarantine, commit))
        except OSError as failure:
            if self._identity.alone:
                raise
            say(f"its manifest could not be renamed: {failure}")
        self._report(commit, error)

    def _report(self, commit: Commit, error: CheckpointCorrupt) -> None:
        """Have nobody resume from a commit any more. Raises the error where others have to know of it first."""
        self._open().corrupt(commit.step, str(error))
        if not self._identity.alone:
            raise error
        self.last_step = -1

    def _from_another_job(self, load: Load) -> Resumed | None:
        """What HOLDFAST_RESUME_FROM names: the same rank's state or, in a world of another size, any rank's."""
        identity = self._identity
        try:
            with place.of_another_job(identity) as (where, step):
                commit = _patiently(where.newest if step is None else lambda: where.published(step))
                if commit is None:
                    raise CheckpointError(self._nothing_in_another_job())
                self._check_world(commit)
                rank = commit.shards[identity.rank % len(commit.shards)].rank
                return _load(load, where, commit, rank)
        except CheckpointCorrupt as error:  # another job's files are not ours to set aside
            remedy = "name an earlier step of that job to begin with"
            raise CheckpointError(f"HOLDFAST_RESUME_FROM: {error}; {remedy}") from None
        except StorageError as error:
            raise CheckpointError(f"HOLDFAST_RESUME_FROM: {error}") from error

    def _nothing_in_another_job(self) -> str:
        """Why there is nothing to resume from; as rank 0's directory tells, where this rank has none."""
        identity = self._identity
        if identity.independent and identity.rank:
            with place.of_another_job(identity._replace(rank=0)) as (where, _):
                commit = _patiently(where.newest)
                if commit is not None:
                    self._check_world(commit)
        scope = "rank" if identity.independent else "gang"
        return (
            f"HOLDFAST_RESUME_FROM is {identity.resume_from}, where rank {identity.rank} finds no checkpoint: name the "
            f"checkpoint directory of a job, or one of its steps, that ran with restart scope {scope}, as this one does"
        )

    def _check_world(self, commit: Commit) -> None:
        """Independent ranks have states, and parts of the data, that are theirs alone. Raises CheckpointError."""
        identity = self._identity
        if identity.independent and commit.world_size != identity.world_size:
            raise CheckpointError(
                f"HOLDFAST_RESUME_FROM is {identity.resume_from}, the checkpoints of {commit.world_size} independent "
                f"ranks; with restart scope rank they can only be resumed by as many, not by {identity.world_size}"
            )

    def _make_way(self, step: int) -> None:
        """Wait until the checkpoint before this one is written, and, while there is patience, answered."""
        before = self._in_flight
        if before is None:
            return
        self._writer.hurry()
        if not self._writer.wait(PATIENCE):
            say(
                f"the checkpoint of step {before} is still being written; training waits, to save step {step}"
            )
            self._writer.wait()
        if self._open().wait(before, self._patience):
            self._patience = PATIENCE
            return
        if self._patience == PATIENCE:
            say(
                f"the checkpoint of step {before} is still not committed; "
                f"training goes on, and step {step} is saved meanwhile"
            )
        self._patience = max(LEAST_PATIENCE, self._patience / 4)

    def _answered(self, step: int, timeout: float | None) -> bool:
        return self._writer.wait(timeout) and self._open().wait(step, timeout)

    def _write(self, save: Save) -> None:
        shard = self._own.save(save.step, save.packed)
        committer = self._open()
        committer.submit(save.step, shard)
        if shard.local_only and not self._own.holds(save.step, shard):
            committer.drained(save.step, 0)  # what was said before the shard itself has told nobody anything

    def _on_failed(self, save: Save, error: Exception) -> None:
        message = str(error)
        if not isinstance(error, OSError):
            self.last_step = save.step - 1  # it is not tried again, unless the program takes it again
        elif self._storage.uri not in message:
            message = f"{message}, below {self._storage.uri}"
        say(f"the checkpoint of step {save.step} could not be written: {message}")
        self._open().save_failed(save.step, message)

    def _on_drained(self, name: str) -> bool:
        """Tell of a shard that is in the storage now. False while nobody has heard of it."""
        step, attempt = place.written_by(name)
        if step is None or (attempt != self._identity.attempt and step != self._resumed):
            return True  # of an attempt whose commit of this step, if there was one, is not what anybody has
        return self._open().drained(step, PATIENCE)

    def _publish(self, commit: Commit, drop: tuple[int, ...] = ()) -> None:
        """Make a commit visible, and later remove what is no longer kept. Called by the committer."""
        self._own.publish(commit)
        if not self._swept:
            self._swept = True
            self._writer.later(lambda: self._own.sweep(commit, self._resumed))
        for step in drop:
            self._writer.later(lambda step=step: self._drop(step))  # type: ignore[misc]

    def _drop(self, step: int) -> None:
        self._own.drop(step)
        self._open().dropped(step)

    def _ask(self) -> Commit | None:
        committer = self._open()
        try:
            return committer.resume(PATIENCE)
        except TimeoutError as error:
            say(f"waiting to be told what to resume from: {error}")
            return committer.resume()

    def _open(self) -> Committer:
        with self._connecting:
            if self._committer is None:
                self._committer = self._connect()
            return self._committer

    def _connect(self) -> Committer:
        identity = self._identity
        if identity.alone:
            return Alone(identity.job_id, identity.attempt, self._publish)
        if self._link is None:
            raise CheckpointError(
                "HOLDFAST_SOCKET is not set: the agent that commits checkpoints cannot be reached"
            )
        link = self._link()
        link.publish = self._publish
        return link


def _until(end: float) -> float:
    return max(0, end - time.monotonic())


def _load(load: Load, where: Checkpoints, commit: Commit, rank: int) -> Resumed:
    """What a rank saved in a commit, verified."""
    _await_shard(where, commit, rank)
    found = _twice(lambda: load(where, commit, rank))
    shard = commit.shard_of(rank)
    return Resumed(commit.step, found, shard.cursor if shard else "")


def _await_shard(where: Checkpoints, commit: Commit, rank: int) -> None:
    """Give a shard that lies on another machine the time to come to the storage."""
    end = time.monotonic() + HELD_PATIENCE
    told = False
    while _patiently(lambda: where.is_elsewhere(commit, rank)) and time.monotonic() < end:
        if not told:
            say(f"waiting for the shard of step {commit.step}, which another machine holds")
            told = True
        time.sleep(FIRST_PAUSE)


def _twice(read: Callable[[], T]) -> T:
    """What fails verification may have failed on its way here, so it is read once more."""
    try:
        return _patiently(read)
    except CheckpointCorrupt as error:
        say(f"{error}; it is read once more")
    return _patiently(read)


def _patiently(read: Callable[[], T]) -> T:
    """Do something with a storage, and wait for one that cannot be reached."""
    pause = FIRST_PAUSE
    while True:
        try:
            return read()
        except Unreachable as error:
            say(f"waiting for the checkpoint storage: {error}")
            time.sleep(pause)
            pause = min(2 * pause, LAST_PAUSE)
