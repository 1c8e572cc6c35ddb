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


@dataclass
class NodeDisk:
    """An agent's state directory. Not fsynced: a machine that goes down may lose any of it."""

    attempts: dict[Key, AttemptDir] = field(default_factory=dict)

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


@dataclass
class Checkpoints:
    """Shard files, manifests and LATEST of every place. Each write is atomic and durable, as the library makes it."""

    known: Callable[[Place, Commit], bool]
    """Tells whether a commit is one that the coordinator has made durable."""
    files: dict[tuple[Place, int, str], int] = field(default_factory=dict)
    manifests: dict[tuple[Place, int], Commit] = field(default_factory=dict)
    latest: dict[Place, int] = field(default_factory=dict)

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
        if before is not None and before != commit:
            raise Violation(f"P1: the manifest of step {commit.step} of {place} changed")
        self.manifests[place, commit.step] = commit

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
