"""What a data set was when it was counted. PURE.

The agent imports this too, and so it imports next to nothing.

A sample's number is its place in the list: those of the first shard first. The fingerprint is of the shards alone,
not of where they lie, so that a data set that has moved, or is read from a mirror, is the same data set.
"""

import json
from typing import Any, NamedTuple

FORMAT = 1


class ShardInfo(NamedTuple):
    """One file of a data set. The fields are those of the message DataShard."""

    file: str
    """Its name below the data set's URI."""
    samples: int
    size_bytes: int
    digest: str
    """xxh3_64 of its content, 16 hex digits; or "etag:" and the storage's own version; or empty: not known."""


class DataIndex(NamedTuple):
    """A data set: where it is, and its shards in the order of their samples."""

    uri: str
    shards: tuple[ShardInfo, ...]

    @property
    def samples(self) -> int:
        """How many samples there are."""
        return sum(shard.samples for shard in self.shards)

    @property
    def size_bytes(self) -> int:
        """How many bytes its shards have."""
        return sum(shard.size_bytes for shard in self.shards)

    @property
    def fingerprint(self) -> str:
        """Tells it from any other data set: 16 hex digits."""
        import xxhash

        return xxhash.xxh3_64_hexdigest(_dumps([list(shard) for shard in self.shards]))


class Declared(NamedTuple):
    """A data set of a job's spec."""

    name: str
    counted: DataIndex


def encode(index: DataIndex) -> bytes:
    """One data set as JSON."""
    return _dumps({"format": FORMAT, **_fields(index)})


def decode(data: bytes) -> DataIndex:
    """Read what `encode` wrote. Raises ValueError when it is something else."""
    try:
        fields = json.loads(data)
        _check(fields["format"])
        return _index(fields)
    except (KeyError, TypeError) as error:
        raise ValueError(f"this is no list of shards: {error!r}") from error


def encode_declared(declared: list[Declared]) -> bytes:
    """The data sets of a job as JSON, for the file that HOLDFAST_DATASETS names."""
    return _dumps(
        {"format": FORMAT, "datasets": [{"name": each.name, **_fields(each.counted)} for each in declared]}
    )


def decode_declared(data: bytes) -> list[Declared]:
    """Read what `encode_declared` wrote. Raises ValueError when it is something else."""
    try:
        fields = json.loads(data)
        _check(fields["format"])
        return [Declared(each["name"], _index(each)) for each in fields["datasets"]]
    except (KeyError, TypeError) as error:
        raise ValueError(f"this is no list of data sets: {error!r}") from error


def _fields(index: DataIndex) -> dict[str, Any]:
    return {"uri": index.uri, "shards": [list(shard) for shard in index.shards]}


def _index(fields: dict[str, Any]) -> DataIndex:
    return DataIndex(fields["uri"], tuple(ShardInfo(*shard) for shard in fields["shards"]))


def _check(written_as: object) -> None:
    if written_as != FORMAT:
        raise ValueError(f"it has format {written_as}; this version of holdfast reads {FORMAT}")


def _dumps(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()
