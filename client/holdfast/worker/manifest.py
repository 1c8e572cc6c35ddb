"""The manifest: a commit, as it stands beside its shards.

Every field comes from what the coordinator committed, so that any process writes the same bytes. A checksum over
them tells a manifest that was changed from one that was written.
"""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import xxhash

FORMAT = 2


class OtherFormat(ValueError):  # noqa: N818  reads as the sentence it is
    """A manifest that another version of holdfast wrote."""


class Shard(NamedTuple):
    """One rank's file of a checkpoint. The fields are those of the message of the same name."""

    rank: int
    file: str
    size_bytes: int
    digest: str
    cursor: str
    metrics: Mapping[str, float] = {}
    local_only: bool = False


class Commit(NamedTuple):
    """A committed checkpoint. The fields are those of the message CommitRecord."""

    job_id: str
    step: int
    attempt: int
    rank: int | None
    world_size: int
    committed_at_ms: int
    shards: tuple[Shard, ...]

    def shard_of(self, rank: int) -> Shard | None:
        """The shard that `rank` wrote."""
        return next((shard for shard in self.shards if shard.rank == rank), None)


def encode(commit: Commit) -> bytes:
    """The bytes of manifest.json."""
    fields: dict[str, Any] = commit._asdict()
    fields["format"] = FORMAT
    # Where a file was for a while is not part of what was committed.
    fields["shards"] = [
        {name: value for name, value in shard._asdict().items() if name != "local_only"}
        for shard in commit.shards
    ]
    if commit.rank is None:
        del fields["rank"]
    fields["xxh3_64"] = _checksum(fields)
    return json.dumps(fields, sort_keys=True, indent=1).encode() + b"\n"


def decode(data: bytes) -> Commit:
    """Read manifest.json. Raises ValueError when it is none or was changed, OtherFormat for another format."""
    try:
        fields = json.loads(data)
        checksum = fields.pop("xxh3_64", None)
        written_as = fields["format"]
        if (written_as == FORMAT or checksum is not None) and checksum != _checksum(fields):
            raise ValueError("the manifest does not have the content that its checksum was made of")
        if fields.pop("format") != FORMAT:
            raise OtherFormat(
                f"the manifest has format {written_as}, and this version of holdfast reads {FORMAT}: "
                "use the version that wrote it, or begin in another place"
            )
        shards = tuple(Shard(**shard) for shard in fields.pop("shards"))
        return Commit(**{"rank": None, **fields}, shards=shards)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"this is no manifest: {error}") from error


def _checksum(fields: Mapping[str, Any]) -> str:
    return xxhash.xxh3_64_hexdigest(json.dumps(fields, sort_keys=True).encode())
