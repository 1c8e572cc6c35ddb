"""Reading a few tensors out of a checkpoint, without a coordinator and without the rest of it."""

import contextlib
import os
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from holdfast.storage.api import StorageError
from holdfast.storage.places import open_storage
from holdfast.worker import state
from holdfast.worker.checkpoint import Checkpoints, Owner
from holdfast.worker.errors import CheckpointError, CheckpointMismatch
from holdfast.worker.manifest import Commit
from holdfast.worker.place import split_step

_SHOWN = 10
"""So many names a message lists."""


def load(
    uri: str,
    names: str | Iterable[str] | None = None,
    *,
    rank: int | None = None,
    step: int | None = None,
    verify: bool = True,
    mmap: bool = True,
) -> dict[str, Any]:
    """Arrays and tensors out of the checkpoint in a place, by name, which is their path in the state: "model/w1".

    `uri` is a job's directory of checkpoints, of which the newest is taken or the one of `step`, or the directory of
    one step; a path or a URI of any storage that holdfast knows. `names` are glob patterns, such as "model/*"; None is
    all of them. `rank` says whose file is read; None is the first there is. What was a torch tensor comes back as one
    if torch is imported, everything else as numpy arrays.

    Nothing but a header and these tensors is read. Files on this machine are mapped with `mmap`: numpy arrays are
    read-only then, and what is written to a torch tensor stays in this process. From elsewhere ranges are read, several
    at once. All of it is verified, unless it is mapped and `verify` is False.
    Raises CheckpointMismatch when a pattern fits no name, CheckpointCorrupt, and CheckpointError when there is no such
    checkpoint.
    """
    with (
        opened(uri, step) as (where, commit),
        where.open_shard(commit, commit.shards[0].rank if rank is None else rank) as file,
    ):
        leaves = dict(state.leaves(file.content["tree"]))
        wanted = matching(leaves, names, uri)
        mapped = mmap and file.is_local
        if not mapped:
            arrays = file.load(wanted, lanes=file.lanes)
        else:
            if verify:
                file.verify(wanted, lanes=file.lanes)
            arrays = file.views(wanted)
    found = {name: state.unpack(leaves[name], arrays) for name in wanted}
    for value in found.values():
        if mapped and isinstance(value, np.ndarray):
            value.flags.writeable = False
    return found


@contextlib.contextmanager
def opened(uri: str, step: int | None = None) -> Iterator[tuple[Checkpoints, Commit]]:
    """The checkpoints in a place, and the one that is asked for. Raises CheckpointError when there is none."""
    directory, named = split_step(os.fspath(uri))
    step = named if step is None else step
    try:
        storage = open_storage(directory, env=os.environ)
    except StorageError as error:
        raise CheckpointError(str(error)) from error
    with contextlib.closing(storage):
        where = Checkpoints(Owner("", 0, 0), storage)
        commit = where.newest() if step is None else where.published(step)
        if commit is None:
            what = "no checkpoint" if step is None else f"no checkpoint of step {step}"
            raise CheckpointError(
                f"there is {what} in {storage.uri}, which has {_some(sorted(storage.names()))}; name the directory "
                "of a job's checkpoints, of an independent rank's, or of one step"
            )
        yield where, commit


def matching(known: Iterable[str], patterns: str | Iterable[str] | None, where: str) -> list[str]:
    """The names that fit any of the patterns. Raises CheckpointMismatch when one fits none."""
    there = list(known)
    if patterns is None:
        return there
    chosen: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        fitting = {name for name in there if name == pattern or fnmatchcase(name, pattern)}
        if not fitting:
            raise CheckpointMismatch(
                f"the checkpoint in {where} has no tensor {pattern!r}; it has {_some(there)}"
            )
        chosen |= fitting
    return [name for name in there if name in chosen]


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:_SHOWN]) or "nothing"
    return f"{shown} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown
