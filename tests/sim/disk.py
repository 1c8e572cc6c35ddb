"""What outlives processes: an agent's state directory, and the checkpoint directories that all nodes see."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from holdfast_agent.core import Key
from holdfast_coordinator.core.model import Commit, Shard
from tests.sim.world import Violation, World


@dataclass
class AttemptDir:
    """jobs/<job>/<rank>-<attempt>/ of an agent."""

    resume: Commit | None
    shim: tuple[int, int] | None = None
    """pid and start time, once the shim has written shim.json."""
    exit: Any = None
    released: bool = False
    hang: Any = None
    """hang.json"""


@dataclass
class NodeDisk:
    """An agent's state directory. Not fsynced, but for the spool: a machine that goes down may lose any of it."""

    attempts: dict[Key, AttemptDir] = field(default_factory=dict)
    spool: dict[tuple[str, int], list[tuple[int, int]]] = field(default_factory=dict)
    """Of each rank: the step and attempt of files that are still to go to the storage."""

    def remove_job(self, job_id: str) -> None:
        self.attempts = {key: found for key, found in self.attempts.items() if key.job_id != job_id}

    def lose_power(self, world: World) -> None:
        for key in sorted(self.attempts):
            if world.chance(0.2):
                del self.attempts[key]
            elif world.chance(0.2):
                self.attempts[key] = replace(self.attempts[key], exit=None, released=False)


Place = tuple[str, int]
"""A job and a gang of it: they commit together, in one directory."""


def attempt_of(file: str) -> int:
    """The attempt that wrote a shard file."""
    return int(file.split(".")[1].removeprefix("attempt-"))


def same_commit(a: Commit | None, b: Commit | None) -> bool:
    """Tell whether both mean one commit, wherever its files lie by now."""
    return a == b or (
        a is not None
        and b is not None
        and (a.job_id, a.gang, a.step, a.attempt, a.at_ms) == (b.job_id, b.gang, b.step, b.attempt, b.at_ms)
    )


@dataclass
class Checkpoints:
    """Shard files, manifests and LATEST of every place. Each write is atomic and durable, as the library makes it.

    A file may rot all the same, and the storage be away for a while.
    """

    known: Callable[[Place, Commit], bool]
    """Tells whether a commit is one that the coordinator has made durable, whatever became of it."""
    kept: Callable[[Place, int], Commit | None]
    """The commit of a step that is in the durable history now."""
    files: dict[tuple[Place, int, str], int] = field(default_factory=dict)
    manifests: dict[tuple[Place, int], Commit] = field(default_factory=dict)
    latest: dict[Place, int] = field(default_factory=dict)
    rotten: set[tuple[Place, int, str]] = field(default_factory=set)
    """Files that are no longer what was written."""
    away: bool = False
    """The storage can't be reached: what is staged lies on its node alone. (Whoever restores finds it all the same.)"""

    def stage(self, place: Place, step: int, shard: Shard, value: int) -> None:
        """Write a rank's file."""
        manifest = self.manifests.get((place, step))
        if manifest is not None and shard.file in [s.file for s in manifest.shards]:
            raise Violation(f"P1: {shard.file} of the committed step {step} of {place} is written again")
        self.files[place, step, shard.file] = value

    def whole(self, place: Place, commit: Commit) -> bool:
        """Tell whether every shard of a commit is there."""
        return all((place, commit.step, shard.file) in self.files for shard in commit.shards)

    def write_manifest(self, place: Place, commit: Commit) -> None:
        if not self.known(place, commit):
            raise Violation(f"P1: a manifest of step {commit.step} of {place} that was never committed")
        before = self.manifests.get((place, commit.step))
        if before is not None and before.attempt > commit.attempt:
            return  # that of a superseded attempt takes no newer one's place
        replaced = before is not None and not same_commit(before, commit)
        if before is not None and replaced and same_commit(self.kept(place, before.step), before):
            raise Violation(f"P1: the manifest of step {commit.step} of {place} changed")
        self.manifests[place, commit.step] = commit

    def is_rotten(self, place: Place, commit: Commit) -> bool:
        """Tell whether a file of a commit is not what was written."""
        return any((place, commit.step, shard.file) in self.rotten for shard in commit.shards)

    def set_aside(self, place: Place, commit: Commit) -> None:
        """Give the manifest of a corrupt checkpoint another name."""
        if same_commit(self.manifests.get((place, commit.step)), commit):
            del self.manifests[place, commit.step]

    def drop(self, place: Place, step: int, attempt: int) -> None:
        """Delete the files of a step, as a worker of an attempt does: none of a newer one."""
        kept = self.kept(place, step)
        if kept is not None and kept.attempt <= attempt:
            raise Violation(f"P1: the files of step {step} of {place}, which is kept, are deleted")
        manifest = self.manifests.get((place, step))
        if manifest is not None and manifest.attempt > attempt:
            return
        self.manifests.pop((place, step), None)
        for file in [key for key in self.files if key[:2] == (place, step)]:
            if attempt_of(file[2]) <= attempt:
                del self.files[file]

    def write_latest(self, place: Place, commit: Commit) -> None:
        """Move LATEST, only ever forward."""
        if self.latest.get(place, -1) < commit.step:
            self.put_latest(place, commit.step)

    def put_latest(self, place: Place, step: int) -> None:
        """The write itself."""
        if step < self.latest.get(place, -1):
            raise Violation(f"P1: LATEST of {place} went back from step {self.latest[place]} to {step}")
        if (place, step) not in self.manifests:
            raise Violation(f"P1: LATEST of {place} names step {step}, which has no manifest")
        self.latest[place] = step
