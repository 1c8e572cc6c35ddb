"""Checkpoints of one scope: the shards of a step, and the manifest that makes them one checkpoint.

    step-0000000100/rank-00003.attempt-2.safetensors    what `save` writes
    step-0000000100/manifest.json                       what `publish` writes, after the commit
    LATEST                                              a hint for people and scripts; only ever moves forward

A checkpoint is there when its manifest is. One digest pins a shard: it covers the safetensors header, and the header
holds the xxh3_64 of every tensor.
"""

# pathlib is one more import to pay for at every restart
# ruff: noqa: PTH123

import json
import struct
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy
import xxhash
from safetensors import SafetensorError

from holdfast.worker import manifest, state
from holdfast.worker.errors import CheckpointCorrupt
from holdfast.worker.manifest import Commit, Shard
from holdfast.worker.storage import Storage

_METADATA_KEY = "holdfast"
_HEADER_LENGTH = struct.Struct("<Q")
_MAX_HEADER_BYTES = 100_000_000  # safetensors' own bound
_PREFIX = "step-"


class Owner(NamedTuple):
    """Whose checkpoints these are."""

    job_id: str
    rank: int
    attempt: int


class Checkpoints:
    """Writes, publishes, finds and reads the checkpoints in one place. Safe to publish from a second thread."""

    def __init__(self, owner: Owner, storage: Storage) -> None:
        self._owner = owner
        self._storage = storage

    def save(self, step: int, value: Any, cursor: str) -> Shard:
        """Write this rank's shard of `step` and make it durable. It counts for nothing until it is committed.

        Raises OSError when it cannot be written, TypeError when the state holds what a checkpoint cannot.
        """
        owner = self._owner
        tree, arrays = state.pack(value)
        metadata = {
            "format": 1,
            "job_id": owner.job_id,
            "step": step,
            "rank": owner.rank,
            "attempt": owner.attempt,
            "cursor": cursor,
            "tree": tree,
            "xxh3_64": {name: _digest(array) for name, array in arrays.items()},
        }
        text = {_METADATA_KEY: json.dumps(metadata, separators=(",", ":"))}
        file = f"rank-{owner.rank:05}.attempt-{owner.attempt}.safetensors"
        name = f"{_directory(step)}/{file}"

        def write(path: str) -> None:
            try:
                safetensors.numpy.save_file(arrays, path, metadata=text)
            except SafetensorError as error:
                raise OSError(f"{file} could not be written: {error}") from error

        self._storage.stage(name, write)
        size, header = _head(self._storage.fetch(name))
        return Shard(owner.rank, file, size, xxhash.xxh3_64_hexdigest(header), cursor)

    def load(self, commit: Commit, rank: int, default: Any = None) -> Any:
        """The state that `rank` saved in `commit`, every byte of it verified. See `state.unpack` for `default`.

        Raises CheckpointCorrupt or CheckpointMismatch.
        """
        shard = commit.shard_of(rank)
        if shard is None:
            raise CheckpointCorrupt(
                f"{_directory(commit.step)}/manifest.json", None, f"a shard of rank {rank}", "none"
            )
        name = f"{_directory(commit.step)}/{shard.file}"
        try:
            path = self._storage.fetch(name)
        except FileNotFoundError:
            raise CheckpointCorrupt(name, None, f"a file of {shard.size_bytes} bytes", "no file") from None
        size, header = _head(path)
        _expect(path, None, f"{shard.size_bytes} bytes", f"{size} bytes")
        _expect(path, None, f"header xxh3 {shard.digest}", f"header xxh3 {xxhash.xxh3_64_hexdigest(header)}")
        metadata = json.loads(json.loads(header[_HEADER_LENGTH.size :])["__metadata__"][_METADATA_KEY])
        arrays = safetensors.numpy.load_file(path)
        for tensor, digest in metadata["xxh3_64"].items():
            _expect(path, tensor, f"xxh3 {digest}", f"xxh3 {_digest(arrays[tensor])}")
        return state.unpack(metadata["tree"], arrays, default)

    def publish(self, commit: Commit) -> None:
        """Write the manifest of a commit, unless it is there, and move LATEST forward to it. Raises OSError."""
        directory = _directory(commit.step)
        if self.published(commit.step) != commit:
            self._put(f"{directory}/manifest.json", manifest.encode(commit))
        with self._storage.exclusive():
            if self._latest() < commit.step:
                self._put("LATEST", f"{directory}\n".encode())

    def published(self, step: int) -> Commit | None:
        """The commit of `step`, if its manifest is there and valid."""
        try:
            commit = manifest.decode(self._storage.read(f"{_directory(step)}/manifest.json"))
        except (FileNotFoundError, ValueError):
            return None
        return commit if (commit.job_id, commit.step) == (self._owner.job_id, step) else None

    def newest(self) -> Commit | None:
        """The newest commit whose manifest is there and valid."""
        steps = [step for name in self._storage.names() if (step := _step_of(name)) is not None]
        commits = (self.published(step) for step in sorted(steps, reverse=True))
        return next((commit for commit in commits if commit), None)

    def _latest(self) -> int:
        try:
            step = _step_of(self._storage.read("LATEST").decode().strip())
        except (FileNotFoundError, ValueError):
            return -1
        return -1 if step is None else step

    def _put(self, name: str, data: bytes) -> None:
        def write(path: str) -> None:
            with open(path, "wb") as file:
                file.write(data)

        self._storage.stage(name, write)


def _directory(step: int) -> str:
    return f"{_PREFIX}{step:010}"


def _step_of(directory: str) -> int | None:
    digits = directory.removeprefix(_PREFIX)
    return int(digits) if digits != directory and digits.isdecimal() else None


def _digest(array: np.ndarray[Any, Any]) -> str:
    return xxhash.xxh3_64_hexdigest(array.reshape(-1).view(np.uint8).data)


def _head(path: str) -> tuple[int, bytes]:
    """How long a safetensors file is, and its header: the 8 bytes of length and the JSON. Short when it is torn."""
    with open(path, "rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        prefix = file.read(_HEADER_LENGTH.size)
        if len(prefix) < _HEADER_LENGTH.size:
            return size, prefix
        (length,) = _HEADER_LENGTH.unpack(prefix)
        return size, prefix + file.read(min(length, _MAX_HEADER_BYTES))


def _expect(file: str, tensor: str | None, expected: str, found: str) -> None:
    if expected != found:
        raise CheckpointCorrupt(file, tensor, expected, found)
