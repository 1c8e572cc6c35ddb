"""How checkpoints lie in their place, and how one becomes visible there."""

import os
import re
from collections.abc import Callable

from holdfast.storage.api import Storage
from holdfast.worker import manifest
from holdfast.worker.manifest import Commit

MANIFEST = "manifest.json"
QUARANTINED = "manifest.quarantined-"
LATEST = "LATEST"
_PREFIX = "step-"
_ASIDE = re.compile(re.escape(QUARANTINED) + r"attempt-(\d+)\.json")
_SHARD = re.compile(r"rank-\d{5,}\.attempt-(\d+)\.safetensors")


def directory(step: int) -> str:
    """The name of a step's directory."""
    return f"{_PREFIX}{step:010}"


def step_of(name: str) -> int | None:
    """The step whose directory has this name."""
    digits = name.removeprefix(_PREFIX)
    return int(digits) if digits != name and digits.isdecimal() else None


def shard_name(rank: int, attempt: int) -> str:
    """The base name of a rank's file: no other attempt writes it."""
    return f"rank-{rank:05}.attempt-{attempt}.safetensors"


def attempt_of(name: str) -> int | None:
    """The attempt whose shard has this name; None of what is no shard."""
    match = _SHARD.fullmatch(os.path.basename(name))
    return int(match[1]) if match else None


def manifest_name(step: int) -> str:
    """Where the manifest of a step is."""
    return f"{directory(step)}/{MANIFEST}"


def is_manifest(name: str) -> bool:
    """The file with this name makes the directory that it is in a checkpoint."""
    return os.path.basename(name) == MANIFEST


def is_quarantined(name: str) -> bool:
    """The file with this name was a manifest."""
    return os.path.basename(name).startswith(QUARANTINED)


def quarantined_attempt(name: str) -> int | None:
    """The attempt whose manifest was set aside under this name; None of what is no such."""
    match = _ASIDE.fullmatch(os.path.basename(name))
    return int(match[1]) if match else None


def publish(storage: Storage, commit: Commit) -> None:
    """Write the manifest of a commit, unless it is there, and move LATEST forward to it.

    Raises OSError; FileExistsError when a later attempt has committed the step since.
    """
    storage.update(manifest_name(commit.step), manifest_change(storage.uri, commit))
    storage.update(LATEST, lambda before: _latest(storage, before, commit.step))


def manifest_change(uri: str, commit: Commit) -> Callable[[bytes | None], bytes | None]:
    """What `Storage.update` makes of a manifest: that of this commit, unless a later attempt's is there."""
    data = manifest.encode(commit)

    def change(before: bytes | None) -> bytes | None:
        there = decoded(before)
        if there is not None and there.attempt > commit.attempt:
            raise FileExistsError(
                f"step {commit.step} in {uri} was committed by attempt {there.attempt} since"
            )
        return None if before == data else data

    return change


def decoded(data: bytes | None) -> Commit | None:
    """The commit that a manifest tells of, if it is there and valid."""
    try:
        return None if data is None else manifest.decode(data)
    except ValueError:
        return None


def _latest(storage: Storage, before: bytes | None, step: int) -> bytes | None:
    """What LATEST is to say: `step`, unless it names a later checkpoint, and that is there."""
    there = step_of((before or b"").decode(errors="replace").strip())
    if there == step or (there is not None and there > step and _is_there(storage, there)):
        return None
    return f"{directory(step)}\n".encode()


def _is_there(storage: Storage, step: int) -> bool:
    try:
        return decoded(storage.read(manifest_name(step))) is not None
    except FileNotFoundError:
        return False
