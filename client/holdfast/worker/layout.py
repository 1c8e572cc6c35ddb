"""How checkpoints lie in their place, and how one becomes visible there."""

import os

from holdfast.storage.api import Storage
from holdfast.worker import manifest
from holdfast.worker.manifest import Commit

MANIFEST = "manifest.json"
QUARANTINED = "manifest.quarantined-attempt-"
LATEST = "LATEST"
_PREFIX = "step-"


def directory(step: int) -> str:
    """The name of a step's directory."""
    return f"{_PREFIX}{step:010}"


def step_of(name: str) -> int | None:
    """The step whose directory has this name."""
    digits = name.removeprefix(_PREFIX)
    return int(digits) if digits != name and digits.isdecimal() else None


def manifest_name(step: int) -> str:
    """Where the manifest of a step is."""
    return f"{directory(step)}/{MANIFEST}"


def is_manifest(name: str) -> bool:
    """The file with this name makes the directory that it is in a checkpoint."""
    return os.path.basename(name) == MANIFEST


def publish(storage: Storage, commit: Commit) -> None:
    """Write the manifest of a commit, unless it is there, and move LATEST forward to it.

    Raises OSError; FileExistsError when a later attempt has committed the step since.
    """
    data = manifest.encode(commit)

    def change(before: bytes | None) -> bytes | None:
        there = decoded(before)
        if there is not None and there.attempt > commit.attempt:
            raise FileExistsError(
                f"step {commit.step} in {storage.uri} was committed by attempt {there.attempt} since"
            )
        return None if before == data else data

    storage.update(manifest_name(commit.step), change)
    storage.update(LATEST, lambda before: _moved_forward(before, commit.step))


def decoded(data: bytes | None) -> Commit | None:
    """The commit that a manifest tells of, if it is there and valid."""
    try:
        return None if data is None else manifest.decode(data)
    except ValueError:
        return None


def _moved_forward(before: bytes | None, step: int) -> bytes | None:
    there = step_of((before or b"").decode(errors="replace").strip())
    return f"{directory(step)}\n".encode() if there is None or there < step else None
