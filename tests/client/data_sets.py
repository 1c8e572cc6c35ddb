"""Data sets of numbered samples, and what is asked of them. Import the fixtures by name."""

import json
import os
import threading

import numpy as np
import pytest

from holdfast.data.make import make_shard_dataset
from holdfast.data.shards import encode_declared
from holdfast.worker.identity import identify

COUNTS = (7, 0, 12, 5, 9)
SAMPLES = sum(COUNTS)


def write_shards(directory, counts=COUNTS):
    directory.mkdir(parents=True, exist_ok=True)
    first = 0
    for number, count in enumerate(counts):
        np.save(directory / f"{number:03}.npy", np.arange(first, first + count))
        first += count


@pytest.fixture
def env(tmp_path):
    return {"HOLDFAST_CACHE_DIR": str(tmp_path / "cache")}


@pytest.fixture
def train(tmp_path):
    write_shards(tmp_path / "train")
    return tmp_path / "train"


@pytest.fixture
def dataset(env, tmp_path):
    """Makes a data set, as `Run.dataset` does."""

    def make(
        source, batch_size=4, *, job="", rank=0, world=1, scope="gang", checkpoints="checkpoints", **options
    ):
        who = {
            "HOLDFAST_CHECKPOINT_URI": str(tmp_path / checkpoints),
            "HOLDFAST_JOB_ID": job,
            "HOLDFAST_RESTART_SCOPE": scope,
            "RANK": str(rank),
            "WORLD_SIZE": str(world),
        }
        identity = identify(who, "train.py")
        given = {"seed": 0, "epochs": 1, "partition": identity.independent, "window": None, **options}
        return make_shard_dataset(source, identity, env, batch_size, **given)

    return make


def numbers(batches):
    return np.concatenate([*batches, []]).astype(int).tolist()


def restored(data, saved):
    data.restore(json.loads(json.dumps(saved)))
    return data


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("holdfast-")]


def wait_for_threads():
    """To end. They were told to."""
    for thread in threads():
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture
def declare(env, tmp_path):
    def write(*declared):
        (tmp_path / "datasets.json").write_bytes(encode_declared(list(declared)))
        env["HOLDFAST_DATASETS"] = str(tmp_path / "datasets.json")

    return write


def grow(path):
    np.save(path, np.arange(50))


def flip(path):
    """One bit, and nothing that a listing shows."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    status = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
