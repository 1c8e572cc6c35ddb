"""Checkpoints of one scope: the shards of a step, and the manifest that makes them one checkpoint.

    step-0000000100/rank-00003.attempt-2.safetensors    what `save` writes
    step-0000000100/manifest.json                       what `publish` writes, after the commit
    step-0000000100/manifest.quarantined-….json         what `quarantine` makes of it
    LATEST                                              a hint for people and scripts; only ever moves forward

A checkpoint is there when its manifest is: publishing is the last thing, and deleting begins with the manifest.
"""

import errno
import os
import re
from typing import Any, NamedTuple, NoReturn

from holdfast.storage.api import Reader, Storage, StorageError
from holdfast.worker import manifest, state
from holdfast.worker.errors import CheckpointCorrupt
from holdfast.worker.layout import (
    QUARANTINED,
    decoded,
    directory,
    manifest_name,
    publish,
    step_of,
)
from holdfast.worker.manifest import Commit, Shard
from holdfast.worker.shard_file import FORMAT, Arrays, ShardBody, ShardFile
from holdfast.worker.spool import SpooledStorage

_SHARD = re.compile(r"rank-\d{5,}\.attempt-(\d+)\.safetensors")
_LOCAL_LANES = 4
_REMOTE_LANES = 8


class Owner(NamedTuple):
    """Whose checkpoints these are."""

    job_id: str
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
        file = f"rank-{owner.rank:05}.attempt-{owner.attempt}.safetensors"
        name = f"{directory(step)}/{file}"
        self._storage.put(name, body)
        local_only = isinstance(self._storage, SpooledStorage) and self._storage.holds(name)
        return Shard(
            owner.rank, file, body.size, body.digest, what.cursor, what.metrics, local_only=local_only
        )

    def load(self, commit: Commit, rank: int, default: Any = None) -> Any:
        """The state that `rank` saved in `commit`, every byte of it verified. See `state.unpack` for `default`.

        Raises CheckpointCorrupt or CheckpointMismatch.
        """
        shard = commit.shard_of(rank)
        if shard is None:
            raise CheckpointCorrupt(manifest_name(commit.step), None, f"a shard of rank {rank}", "none")
        name = f"{directory(commit.step)}/{shard.file}"
        try:
            with self._storage.open(name) as reader:
                file = ShardFile(reader, f"{self._storage.uri}/{name}", shard.size_bytes, shard.digest)
                arrays = file.load(lanes=lanes_for(reader))
        except FileNotFoundError:
            self._corrupt(name, shard, "no file")
        except (EOFError, StorageError) as error:
            self._corrupt(name, shard, str(error))
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            self._corrupt(name, shard, str(error))
        return state.unpack(file.content["tree"], arrays, default)

    def publish(self, commit: Commit) -> None:
        """Write the manifest of a commit, unless it is there, and move LATEST forward to it.

        Raises OSError; FileExistsError when a later attempt has committed the step since.
        """
        if isinstance(self._storage, SpooledStorage) and any(shard.local_only for shard in commit.shards):
            self._storage.hold(manifest_name(commit.step), manifest.encode(commit))
        else:
            publish(self._storage, commit)

    def published(self, step: int) -> Commit | None:
        """The commit of `step`, if its manifest is there and valid."""
        try:
            commit = decoded(self._storage.read(manifest_name(step)))
        except FileNotFoundError:
            return None
        ours = commit is not None and (commit.job_id, commit.step) == (self._owner.job_id, step)
        return commit if ours else None

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
        inside = directory(commit.step)
        try:
            self._storage.rename(manifest_name(commit.step), f"{inside}/{QUARANTINED}{commit.attempt}.json")
        except FileNotFoundError:
            return  # another rank was first

    def drop(self, step: int) -> None:
        """Remove a checkpoint: first what makes it one, then its files. Raises OSError; may be called again."""
        self._storage.delete([manifest_name(step)])
        self._storage.delete(entry.name for entry in self._storage.files(directory(step)))

    def sweep(self, newest: Commit, resumed: int | None) -> None:
        """Remove what dead attempts left: files of attempts before this one that no commit has. Raises OSError.

        `newest` is a commit of this attempt, which resumed from step `resumed`. Steps between the two that have no
        manifest were never committed: a commit after `resumed` could only be this attempt's own.
        """
        for step in self.steps():
            names = [entry.name for entry in self._storage.files(directory(step))]
            bases = [os.path.basename(name) for name in names]
            if any(base.startswith(QUARANTINED) for base in bases):
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

    def _corrupt(self, name: str, shard: Shard, found: str) -> NoReturn:
        expected = f"a file of {shard.size_bytes} bytes"
        raise CheckpointCorrupt(f"{self._storage.uri}/{name}", None, expected, found) from None

    def _is_of_dead_attempt(self, base: str) -> bool:
        match = _SHARD.fullmatch(base)
        return match is not None and int(match[1]) < self._owner.attempt


def lanes_for(reader: Reader) -> int:
    """How many threads read a file best."""
    return min(_LOCAL_LANES, os.cpu_count() or 1) if reader.path else _REMOTE_LANES
