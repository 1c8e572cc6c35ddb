"""Checkpoints of one scope: the shards of a step, and the manifest that makes them one checkpoint.

    step-0000000100/rank-00003.attempt-2.safetensors    what `save` writes
    step-0000000100/manifest.json                       what `publish` writes, after the commit
    step-0000000100/manifest.quarantined-….json         what `quarantine` makes of it
    LATEST                                              a hint for people and scripts; only ever moves forward

A checkpoint is there when its manifest is: publishing is the last thing, and deleting begins with the manifest.
"""

import contextlib
import errno
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

from holdfast.storage.api import Storage
from holdfast.worker import manifest, state
from holdfast.worker.errors import CheckpointCorrupt, CheckpointError
from holdfast.worker.layout import (
    QUARANTINED,
    attempt_of,
    directory,
    is_quarantined,
    manifest_change,
    manifest_name,
    publish,
    quarantined_attempt,
    shard_name,
    step_of,
)
from holdfast.worker.manifest import Commit, Shard
from holdfast.worker.shard_file import FORMAT, Arrays, ShardBody, ShardFile, blaming
from holdfast.worker.spool import SpooledStorage


class Owner(NamedTuple):
    """Whose checkpoints these are."""

    job_id: str
    """Empty: any job's, to read them wherever they were copied to."""
    rank: int
    attempt: int


class Packed(NamedTuple):
    """A state that was taken apart, and what belongs to it. Made by `packed`."""

    tree: Any
    arrays: Arrays
    cursor: str
    metrics: dict[str, float]


def packed(value: Any, cursor: str = "", metrics: dict[str, float] | None = None) -> Packed:
    """Take a state apart, without a copy of its arrays. Raises TypeError, naming the leaf, for what can't be saved."""
    tree, arrays = state.pack(value)
    return Packed(tree, arrays, cursor, metrics or {})


class Checkpoints:
    """Writes, publishes, finds, reads and removes the checkpoints in one place. Several threads may use it."""

    def __init__(self, owner: Owner, storage: Storage) -> None:
        self._owner = owner
        self._storage = storage

    def save(self, step: int, what: Packed) -> Shard:
        """Write this rank's shard of `step` and make it durable. It counts for nothing until it is committed.

        Raises OSError when it cannot be written.
        """
        owner = self._owner
        content = {
            "format": FORMAT,
            "job_id": owner.job_id,
            "step": step,
            "rank": owner.rank,
            "attempt": owner.attempt,
            "cursor": what.cursor,
            "tree": what.tree,
        }
        body = ShardBody(what.arrays, content)
        file = shard_name(owner.rank, owner.attempt)
        name = f"{directory(step)}/{file}"
        self._storage.put(name, body)
        shard = Shard(owner.rank, file, body.size, body.digest, what.cursor, what.metrics)
        return shard._replace(local_only=self.holds(step, shard))

    def load(self, commit: Commit, rank: int, default: Any = None) -> Any:
        """The state that `rank` saved in `commit`, every byte of it verified. See `state.unpack` for `default`.

        Raises CheckpointCorrupt or CheckpointMismatch.
        """
        with self.open_shard(commit, rank) as file:
            return state.unpack(file.content["tree"], file.load(lanes=file.lanes), default)

    @contextlib.contextmanager
    def open_shard(self, commit: Commit, rank: int) -> Iterator[ShardFile]:
        """The file that `rank` saved in `commit`, open for reading. Raises CheckpointCorrupt."""
        shard = commit.shard_of(rank)
        if shard is None:
            raise CheckpointCorrupt(manifest_name(commit.step), None, f"a shard of rank {rank}", "none")
        name = f"{directory(commit.step)}/{shard.file}"
        path = f"{self._storage.uri}/{name}"
        with contextlib.ExitStack() as opened:
            with blaming(path, None, f"a file of {shard.size_bytes} bytes"):
                reader = opened.enter_context(self._storage.open(name))
                file = ShardFile(reader, path, shard.size_bytes, shard.digest)
            yield file

    def publish(self, commit: Commit) -> None:
        """Write the manifest of a commit, unless it is there, and move LATEST forward to it.

        Raises OSError; FileExistsError when a later attempt has committed the step since.
        """
        if isinstance(self._storage, SpooledStorage) and any(shard.local_only for shard in commit.shards):
            self._storage.hold(manifest_name(commit.step), manifest_change(self._storage.uri, commit))
        else:
            publish(self._storage, commit)

    def published(self, step: int) -> Commit | None:
        """The commit of `step`, if its manifest is there and valid. Raises CheckpointError for another format."""
        try:
            return self.manifest(step)
        except CheckpointCorrupt:
            return None

    def manifest(self, step: int) -> Commit | None:
        """The commit of `step`, if its manifest is there. Raises CheckpointCorrupt, and as `published` does."""
        name = manifest_name(step)
        where = f"{self._storage.uri}/{name}"
        try:
            commit = manifest.decode(self._storage.read(name))
        except FileNotFoundError:
            return None
        except manifest.OtherFormat as error:
            raise CheckpointError(f"{where}: {error}") from None
        except ValueError as error:
            raise CheckpointCorrupt(where, None, "a manifest", str(error)) from None
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            raise CheckpointCorrupt(where, None, "a manifest", str(error)) from None
        ours = commit.step == step and self._owner.job_id in ("", commit.job_id)
        return commit if ours else None

    def holds(self, step: int, shard: Shard) -> bool:
        """The shard lies on this machine, until its storage is back."""
        return isinstance(self._storage, SpooledStorage) and self._storage.holds(
            f"{directory(step)}/{shard.file}"
        )

    def is_elsewhere(self, commit: Commit, rank: int) -> bool:
        """The shard of a rank lies on another machine, or is on its way from there to the storage."""
        shard = commit.shard_of(rank)
        if shard is None or not isinstance(self._storage, SpooledStorage) or self.holds(commit.step, shard):
            return False
        on_its_way = shard.local_only or self._storage.holds(manifest_name(commit.step))
        name = f"{directory(commit.step)}/{shard.file}"
        return on_its_way and all(entry.name != name for entry in self._storage.files(directory(commit.step)))

    def steps(self) -> list[int]:
        """The steps of which there is anything, newest first."""
        found = (step_of(name) for name in self._storage.names())
        return sorted((step for step in found if step is not None), reverse=True)

    def newest(self) -> Commit | None:
        """The newest commit whose manifest is there and valid."""
        commits = (self.published(step) for step in self.steps())
        return next((commit for commit in commits if commit), None)

    def quarantine(self, commit: Commit) -> None:
        """Set a commit aside: its files stay, but it is no checkpoint any more. Raises OSError."""
        self._set_aside(commit.step, _quarantined(commit))
        if commit.attempt == self._owner.attempt:
            # This attempt will write files of these names again.
            for shard in commit.shards:
                self._rename(
                    f"{directory(commit.step)}/{shard.file}",
                    f"{directory(commit.step)}/quarantined.{shard.file}",
                )

    def quarantine_manifest(self, step: int) -> None:
        """The same where the manifest itself is corrupt. Raises OSError."""
        self._set_aside(step, f"{QUARANTINED}unreadable.json")

    def is_quarantined(self, commit: Commit) -> bool:
        """The commit was set aside, by this rank or another."""
        name = f"{directory(commit.step)}/{_quarantined(commit)}"
        return any(entry.name == name for entry in self._storage.files(directory(commit.step)))

    def drop(self, step: int) -> None:
        """Remove a checkpoint: first what makes it one, then its files. Raises OSError; may be called again.

        What a later attempt has committed since, and what was set aside, stays.
        """
        with contextlib.suppress(CheckpointCorrupt):
            commit = self.manifest(step)
            if commit is not None and commit.attempt > self._owner.attempt:
                return
        self._storage.delete([manifest_name(step)])
        names = [entry.name for entry in self._storage.files(directory(step))]
        aside = {attempt for name in names if (attempt := quarantined_attempt(name)) is not None}
        written = ((name, attempt_of(name)) for name in names)
        self._storage.delete(
            name
            for name, attempt in written
            if attempt is not None and attempt <= self._owner.attempt and attempt not in aside
        )

    def sweep(self, newest: Commit, resumed: int | None) -> None:
        """Remove what dead attempts left: files of attempts before this one that no commit has. Raises OSError.

        `newest` is a commit of this attempt, which resumed from step `resumed`. Steps between the two that have no
        manifest were never committed: a commit after `resumed` could only be this attempt's own.
        """
        for step in self.steps():
            names = [entry.name for entry in self._storage.files(directory(step))]
            bases = [os.path.basename(name) for name in names]
            if any(map(is_quarantined, bases)):
                continue  # kept for whoever wants to know
            commit = self.published(step)
            between = (resumed is None or step > resumed) and step < newest.step
            if commit is None and not between:
                continue
            kept = {shard.file for shard in commit.shards} if commit else set()
            self._storage.delete(
                name
                for name, base in zip(names, bases, strict=True)
                if base not in kept and self._is_of_dead_attempt(base)
            )

    def _set_aside(self, step: int, name: str) -> None:
        self._rename(manifest_name(step), f"{directory(step)}/{name}")

    def _rename(self, name: str, new: str) -> None:
        with contextlib.suppress(FileNotFoundError):  # another rank was first
            self._storage.rename(name, new)

    def _is_of_dead_attempt(self, base: str) -> bool:
        attempt = attempt_of(base)
        return attempt is not None and attempt < self._owner.attempt


def _quarantined(commit: Commit) -> str:
    return f"{QUARANTINED}attempt-{commit.attempt}.json"
