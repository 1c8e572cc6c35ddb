"""Reading is cheap: of a checkpoint, what is asked for is read, and verified, and nothing else."""

import subprocess
import sys

import numpy as np
import pytest

import holdfast
from holdfast.storage.local import LocalReader, LocalStorage, Writer
from holdfast.worker import reading
from holdfast.worker.checkpoint import Checkpoints, Owner, packed
from holdfast.worker.errors import CheckpointCorrupt, CheckpointError, CheckpointMismatch
from holdfast.worker.manifest import Commit
from holdfast.worker.shard_file import CHUNK_BYTES, ShardFile

STATE = {
    "model": {"w": np.arange(3 * CHUNK_BYTES // 8, dtype=np.float64), "b": np.arange(5, dtype=np.float32)},
    "optimizer": {"w": np.full(CHUNK_BYTES + 1, 7, np.uint8)},
    "when": np.array(["2024-01-01", "2025-01-01"], "M8[D]"),
    "none": np.zeros((0, 3)),
    "step": 3,
}


def save(top, step, *states, job="job"):
    """Commit what several ranks save."""
    places = [
        Checkpoints(Owner(job, rank, 1), LocalStorage(str(top), job, Writer(rank, 1)))
        for rank in range(len(states))
    ]
    shards = [place.save(step, packed(state)) for place, state in zip(places, states, strict=True)]
    places[0].publish(Commit(job, step, 1, None, len(states), 1000, tuple(shards)))
    return top / job


@pytest.fixture
def uri(tmp_path):
    save(tmp_path, 100, {**STATE, "step": 1})
    return save(tmp_path, 200, STATE, {"mine": np.ones(2)})


class CountingReader(LocalReader):
    """A file that is elsewhere, as far as the reader can tell."""

    def __init__(self, path, reads):
        super().__init__(path)
        self.path = None
        self._reads = reads

    def read_into(self, buffer, offset):
        self._reads.append((offset, len(buffer)))
        super().read_into(buffer, offset)


@pytest.fixture
def elsewhere(monkeypatch):
    """Lets local files be elsewhere; the reads of shards, as (offset, bytes)."""
    reads = []

    class Elsewhere(LocalStorage):
        def open(self, name):
            return CountingReader(self._path(name), reads)

    monkeypatch.setattr(reading, "open_storage", lambda uri, env: Elsewhere(str(uri)))
    return reads


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("verify", [True, False])
def test_all_of_the_newest_checkpoint_is_read(uri, mmap, verify):
    found = holdfast.load(uri, mmap=mmap, verify=verify)
    assert sorted(found) == ["model/b", "model/w", "none", "optimizer/w", "when"]
    for name, array in found.items():
        saved = STATE
        for key in name.split("/"):
            saved = saved[key]
        assert (array.dtype, array.shape, array.tobytes()) == (saved.dtype, saved.shape, saved.tobytes())
        assert array.flags.writeable == (not mmap)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("model/w", ["model/w"]),
        ("model/*", ["model/b", "model/w"]),
        (["*/w"], ["model/w", "optimizer/w"]),
        (["when", "model/b"], ["model/b", "when"]),
    ],
)
def test_names_are_patterns(uri, names, expected):
    assert sorted(holdfast.load(str(uri), names)) == expected


def test_rank_and_step_can_be_named(uri):
    assert sorted(holdfast.load(uri, rank=1)) == ["mine"]
    assert len(holdfast.load(uri, step=100)) == 5
    assert len(holdfast.load(f"{uri}/step-0000000100/")) == 5
    assert sorted(holdfast.load(f"file://{uri}/step-0000000200", rank=1)) == ["mine"]


def test_a_copy_under_another_name_is_read(uri, tmp_path):
    (uri / "step-0000000200").rename(uri / "of old")
    uri.rename(tmp_path / "backup")
    assert len(holdfast.load(tmp_path / "backup")) == 5
    with pytest.raises(CheckpointError, match=r"no checkpoint in .*/backup/of old, which has manifest.json"):
        holdfast.load(tmp_path / "backup" / "of old")


def test_only_what_is_needed_is_read(uri, elsewhere):
    """A header, whose length comes first, and the chunks of the tensor; for the rest of the file, nothing."""
    whole = sum(path.stat().st_size for path in (uri / "step-0000000200").glob("rank-00000.*"))
    found = holdfast.load(uri, "model/b")
    assert found["model/b"].tolist() == STATE["model"]["b"].tolist()
    (_, first), (_, header), (start, length) = elsewhere
    assert (first, length) == (8, STATE["model"]["b"].nbytes)
    assert start >= header
    assert header < 10_000 < whole
    elsewhere.clear()
    holdfast.load(uri, "model/w")
    assert sum(length for _, length in elsewhere[2:]) == STATE["model"]["w"].nbytes
    assert [length for _, length in elsewhere[2:]] == [CHUNK_BYTES] * 3


def test_of_a_tensor_only_the_chunks_that_a_range_is_in_are_read(uri, elsewhere):
    data = STATE["model"]["w"].tobytes()
    with (
        reading.opened(str(uri)) as (where, commit),
        where.open_shard(commit, 0) as file,
    ):
        for start, end in [
            (0, 8),
            (CHUNK_BYTES - 1, CHUNK_BYTES + 1),
            (CHUNK_BYTES, 2 * CHUNK_BYTES),
            (len(data) - 3, len(data)),
            (5, 5),
            (0, len(data)),
        ]:
            elsewhere.clear()
            into = bytearray(end - start)
            for task in file.reads("model/w", start, memoryview(into)):
                task()
            assert into == data[start:end]
            chunks = len(range(start // CHUNK_BYTES, -(-end // CHUNK_BYTES))) if end > start else 0
            assert sum(length for _, length in elsewhere) == chunks * CHUNK_BYTES


def flip(uri, array):
    """Change a byte of an array in the newest checkpoint."""
    (path,) = (uri / "step-0000000200").glob("rank-00000.*")
    data = bytearray(path.read_bytes())
    data[data.index(array.tobytes()[-64:])] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("mmap", [True, False])
def test_what_is_read_is_verified_and_what_is_not_read_is_not(uri, mmap):
    flip(uri, STATE["optimizer"]["w"])
    holdfast.load(uri, "model/*", mmap=mmap)
    with pytest.raises(CheckpointCorrupt, match="tensor 'optimizer/w'"):
        holdfast.load(uri, mmap=mmap)
    assert not mmap or len(holdfast.load(uri, verify=False)) == 5


def test_mapped_files_stay_as_they_are(uri):
    (path,) = (uri / "step-0000000200").glob("rank-00000.*")
    before = path.read_bytes()
    array = holdfast.load(uri, "model/b")["model/b"]
    with pytest.raises(ValueError, match="read-only"):
        array += 1
    array.flags.writeable = True
    array += 1
    assert path.read_bytes() == before


def test_what_is_not_there_is_an_error_that_says_what_is(uri, tmp_path):
    with pytest.raises(CheckpointMismatch, match=r"no tensor 'model/x'; it has model/w, "):
        holdfast.load(uri, ["model/b", "model/x"])
    with pytest.raises(
        CheckpointError, match=r"no checkpoint of step 7 in .*, which has LATEST, step-0000000100"
    ):
        holdfast.load(uri, step=7)
    with pytest.raises(
        CheckpointError, match=r"no checkpoint in .*, which has job; name the directory of a job"
    ):
        holdfast.load(tmp_path)
    with pytest.raises(CheckpointCorrupt, match="a shard of rank 7"):
        holdfast.load(uri, rank=7)


def test_a_file_that_ends_while_it_is_read_is_named(uri):
    """Of several files that are open, the one that is torn."""
    (path,) = (uri / "step-0000000200").glob("rank-00000.*")
    with LocalReader(str(path)) as reader, LocalReader(str(path)):
        shard = holdfast.worker.manifest.decode((path.parent / "manifest.json").read_bytes()).shards[0]
        file = ShardFile(reader, str(path), shard.size_bytes, shard.digest)
        with path.open("r+b") as torn:
            torn.truncate(path.stat().st_size - 100)
        with pytest.raises(CheckpointCorrupt) as caught:
            file.load()
    assert caught.value.file == str(path)
    assert "ends at byte" in caught.value.found


def test_import_holdfast_imports_no_numpy_and_no_torch():
    program = (
        "import sys, holdfast; assert not {'numpy', 'torch', 'jax'} & set(sys.modules); "
        "holdfast.load; assert not {'torch', 'jax', 'grpc', 'asyncio', 'boto3'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
