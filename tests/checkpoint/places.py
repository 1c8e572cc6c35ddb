"""What the tests of checkpoints in a directory begin with."""

import os

import numpy as np

from holdfast.storage.local import LocalStorage, Writer
from holdfast.worker.checkpoint import Checkpoints, Owner, packed
from holdfast.worker.errors import CheckpointCorrupt
from holdfast.worker.manifest import Commit

OLD = {"w": np.arange(16.0), "n": 100}
NEW = {"w": np.arange(16.0) + 1, "n": 200}


def storage_at(top, attempt=1, rank=0, files=None):
    return LocalStorage(str(top), "job", Writer(rank, attempt), files)


def checkpoints_on(storage, attempt=1, rank=0):
    return Checkpoints(Owner("job", rank, attempt), storage)


def checkpoints_at(top, attempt=1, rank=0, files=None):
    return checkpoints_on(storage_at(top, attempt, rank, files), attempt, rank)


def commit_of(step, *shards, attempt=1):
    return Commit("job", step, attempt, None, len(shards), 1000 + step, shards)


def save_and_publish(checkpoints, step, state, attempt=1):
    commit = commit_of(step, checkpoints.save(step, packed(state)), attempt=attempt)
    checkpoints.publish(commit)
    return commit


def same(left, right):
    return left.keys() == right.keys() and all(np.array_equal(left[key], right[key]) for key in left)


def resumed(checkpoints):
    """What a process that finds these checkpoints resumes from, or the word for what must never be found."""
    commit = checkpoints.newest()
    if commit is None:
        return None
    try:
        state = checkpoints.load(commit, 0)
    except CheckpointCorrupt:
        return "torn"
    expected = {OLD["n"]: OLD, NEW["n"]: NEW}[state["n"]]
    return state["n"] if same(state, expected) else "torn"


def names_below(top):
    return sorted(
        os.path.relpath(os.path.join(where, name), top) for where, _, names in os.walk(top) for name in names
    )
