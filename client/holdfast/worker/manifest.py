"""The manifest: a commit, as it stands beside its shards.

Every field comes from what the coordinator committed, so that any process writes the same bytes.
"""

import json
from typing import Any, NamedTuple

FORMAT = 1


class Shard(NamedTuple):
    """One rank's file of a checkpoint. The fields are those of the message of the same name."""

    rank: int
    file: str
    size_bytes: int
    digest: str
    cursor: str


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
    fields["shards"] = [shard._asdict() for shard in commit.shards]
    if commit.rank is None:
        del fields["rank"]
    return json.dumps(fields, sort_keys=True, indent=1).encode() + b"\n"


def decode(data: bytes) -> Commit:
    """Read manifest.json. Raises ValueError when it is none, or one of a newer format."""
    try:
        fields = json.loads(data)
        written_as = fields.pop("format")
        if written_as != FORMAT:
            raise ValueError(f"the manifest has format {written_as}; this version of holdfast reads {FORMAT}")
        shards = tuple(Shard(**shard) for shard in fields.pop("shards"))
        return Commit(**{"rank": None, **fields}, shards=shards)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"this is no manifest: {error}") from error
