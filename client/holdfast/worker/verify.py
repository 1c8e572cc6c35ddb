"""Looking at checkpoints without whoever made them: every byte is read and compared with what was committed."""

import os
from collections.abc import Callable
from typing import NamedTuple

from holdfast.storage.api import Storage, StorageError
from holdfast.worker import manifest
from holdfast.worker.errors import CheckpointCorrupt
from holdfast.worker.layout import is_manifest
from holdfast.worker.manifest import Commit
from holdfast.worker.shard_file import ShardFile, lanes_for


class Verdict(NamedTuple):
    """What became of looking at one checkpoint."""

    where: str
    """Its directory, below the storage's."""
    step: int
    """-1 when its manifest can't be read."""
    rank: int | None
    ok: bool
    files: int
    bytes: int
    problem: str


def verify(
    storage: Storage,
    step: int | None = None,
    *,
    every: bool = False,
    told: Callable[[str], None] = lambda _: None,
) -> list[Verdict]:
    """Verify the checkpoints below a place: of each job and rank the newest, the one of `step`, or `every` one.

    The place may be a step's directory, a job's, or one that holds several jobs. `told` hears the name of each file
    before it is read. Raises OSError when the place can't be read.
    """
    manifests = [entry.name for entry in storage.files() if is_manifest(entry.name)]
    newest: dict[str, tuple[int, str, Commit]] = {}
    verdicts = []
    for name in manifests:
        try:
            commit = manifest.decode(storage.read(name))
        except FileNotFoundError:
            continue  # removed since
        except ValueError as error:
            verdicts.append(
                Verdict(os.path.dirname(name), -1, None, ok=False, files=0, bytes=0, problem=str(error))
            )
            continue
        scope = os.path.dirname(os.path.dirname(name))
        if every or commit.step == step:
            verdicts.append(_look(storage, name, commit, told))
        elif step is None and commit.step > newest.get(scope, (-1,))[0]:
            newest[scope] = (commit.step, name, commit)
    verdicts += [_look(storage, name, commit, told) for _, name, commit in newest.values()]
    return sorted(verdicts)


def _look(storage: Storage, name: str, commit: Commit, told: Callable[[str], None]) -> Verdict:
    inside = os.path.dirname(name)
    size = 0
    problem = ""
    for shard in commit.shards:
        file = os.path.join(inside, shard.file)
        told(file)
        size += shard.size_bytes
        try:
            with storage.open(file) as reader:
                ShardFile(reader, file, shard.size_bytes, shard.digest).verify(lanes=lanes_for(reader))
        except (CheckpointCorrupt, StorageError, OSError, EOFError) as error:
            problem = problem or str(error)
    return Verdict(inside, commit.step, commit.rank, not problem, len(commit.shards), size, problem)
