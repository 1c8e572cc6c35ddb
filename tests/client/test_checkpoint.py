"""P1: a committed checkpoint is never lost, never half visible, never replaced by an older one."""

import errno
import json
import os
import threading

import numpy as np
import pytest
import safetensors.numpy
import xxhash

from holdfast.storage.local import Files, LocalStorage, Writer
from holdfast.worker import manifest
from holdfast.worker.checkpoint import Checkpoints, Owner, packed
from holdfast.worker.errors import CheckpointCorrupt
from holdfast.worker.manifest import Commit
from holdfast.worker.shard_file import CHUNK_BYTES

STATE = {"w": np.arange(6, dtype=np.float32), "b": np.ones(3), "n": 7}


def open_checkpoints(top, rank=0, attempt=1, files=None):
    return Checkpoints(
        Owner("job", rank, attempt), LocalStorage(str(top), "job", Writer(rank, attempt), files)
    )


def commit_of(step, *shards, attempt=1):
    return Commit("job", step, attempt, None, len(shards), 1000 + step, shards)


def save_and_publish(checkpoints, step, state=STATE):
    commit = commit_of(step, checkpoints.save(step, packed(state, "")))
    checkpoints.publish(commit)
    return commit


def names_below(top):
    return sorted(str(path.relative_to(top)) for path in top.rglob("*") if path.is_file())


@pytest.fixture
def checkpoints(tmp_path):
    return open_checkpoints(tmp_path)


def test_the_layout_is_the_documented_one(tmp_path):
    shards = [open_checkpoints(tmp_path, rank, attempt=2).save(100, packed(STATE, "[]")) for rank in (0, 1)]
    commit = Commit("job", 100, 2, None, 2, 1_700_000_000_000, tuple(shards))
    open_checkpoints(tmp_path, attempt=2).publish(commit)
    assert names_below(tmp_path) == [
        "job/LATEST",
        "job/step-0000000100/manifest.json",
        "job/step-0000000100/rank-00000.attempt-2.safetensors",
        "job/step-0000000100/rank-00001.attempt-2.safetensors",
    ]
    assert (tmp_path / "job/LATEST").read_text() == "step-0000000100\n"
    fields = json.loads((tmp_path / "job/step-0000000100/manifest.json").read_bytes())
    assert {
        key: fields[key] for key in ("format", "job_id", "step", "attempt", "world_size", "committed_at_ms")
    } == {
        "format": 2,
        "job_id": "job",
        "step": 100,
        "attempt": 2,
        "world_size": 2,
        "committed_at_ms": 1_700_000_000_000,
    }
    assert [shard["rank"] for shard in fields["shards"]] == [0, 1]


def test_one_digest_pins_the_whole_file(tmp_path, checkpoints):
    shard = checkpoints.save(1, packed(STATE, "the cursor"))
    path = tmp_path / "job/step-0000000001" / shard.file
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    assert shard.size_bytes == len(data)
    assert shard.digest == xxhash.xxh3_64_hexdigest(data[: 8 + length])
    metadata = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["holdfast"])
    arrays = safetensors.numpy.load_file(path)
    assert metadata["chunk_bytes"] == CHUNK_BYTES
    assert metadata["xxh3_64"] == {
        name: xxhash.xxh3_64_hexdigest(array.tobytes()) for name, array in arrays.items()
    }
    assert (metadata["step"], metadata["rank"], metadata["attempt"], metadata["cursor"]) == (
        1,
        0,
        1,
        "the cursor",
    )


def test_a_manifest_is_read_as_it_was_written():
    shard = manifest.Shard(3, "rank-00003.attempt-2.safetensors", 10, "0" * 16, '[{"epoch":0}]')
    for rank in (None, 0, 3):
        commit = Commit("job", 5, 2, rank, 4, 99, (shard,))
        assert manifest.decode(manifest.encode(commit)) == commit


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"{}", b'{"format":2}', b'{"format":1,"shards":[{}]}', b"\xff"]
)
def test_what_is_no_manifest_is_refused(data):
    with pytest.raises(ValueError):
        manifest.decode(data)


def test_a_flipped_bit_in_a_tensor_is_found_and_named(tmp_path, checkpoints):
    commit = save_and_publish(checkpoints, 1)
    path = tmp_path / "job/step-0000000001" / commit.shards[0].file
    data = bytearray(path.read_bytes())
    at = data.index(np.arange(6, dtype=np.float32).tobytes())
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointCorrupt) as caught:
        checkpoints.load(commit, 0)
    assert (caught.value.file, caught.value.tensor) == (str(path), "w")
    assert caught.value.expected != caught.value.found
    assert all(
        word in str(caught.value) for word in (str(path), "'w'", caught.value.expected, caught.value.found)
    )


@pytest.mark.parametrize("keep", [0, 4, 8, 100, -1])
def test_a_torn_file_is_refused(tmp_path, checkpoints, keep):
    commit = save_and_publish(checkpoints, 1)
    path = tmp_path / "job/step-0000000001" / commit.shards[0].file
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointCorrupt, match=f"{commit.shards[0].size_bytes} bytes"):
        checkpoints.load(commit, 0)


def test_a_changed_header_is_refused(tmp_path, checkpoints):
    commit = save_and_publish(checkpoints, 1)
    path = tmp_path / "job/step-0000000001" / commit.shards[0].file
    path.write_bytes(path.read_bytes().replace(b'"F32"', b'"I32"'))
    with pytest.raises(CheckpointCorrupt, match="header xxh3"):
        checkpoints.load(commit, 0)


def test_a_file_of_another_save_is_refused(tmp_path, checkpoints):
    """The header has the same length and every tensor its right checksum, but it is not what was committed."""
    commit = save_and_publish(checkpoints, 1)
    checkpoints.save(1, packed({**STATE, "n": 8}))
    with pytest.raises(CheckpointCorrupt, match="header xxh3"):
        checkpoints.load(commit, 0)


def test_a_missing_file_or_shard_is_refused(tmp_path, checkpoints):
    commit = save_and_publish(checkpoints, 1)
    with pytest.raises(CheckpointCorrupt, match="a shard of rank 5"):
        checkpoints.load(commit, 5)
    (tmp_path / "job/step-0000000001" / commit.shards[0].file).unlink()
    with pytest.raises(CheckpointCorrupt, match="no file"):
        checkpoints.load(commit, 0)


@pytest.mark.parametrize("file", ["../../secret", "/etc/passwd", "a/../b", "."])
def test_a_manifest_cannot_lead_out_of_its_directory(checkpoints, file):
    commit = save_and_publish(checkpoints, 1)
    led_astray = commit._replace(shards=(commit.shards[0]._replace(file=file),))
    with pytest.raises(CheckpointCorrupt, match="is no name below"):
        checkpoints.load(led_astray, 0)


def test_latest_only_moves_forward(tmp_path, checkpoints):
    late = commit_of(100, checkpoints.save(100, packed(STATE, "")))
    save_and_publish(checkpoints, 200)
    checkpoints.publish(late)
    assert (tmp_path / "job/LATEST").read_text() == "step-0000000200\n"
    assert checkpoints.newest().step == 200
    assert checkpoints.published(100) == late


def test_publishing_again_changes_nothing(tmp_path, checkpoints):
    commit = save_and_publish(checkpoints, 1)
    before = (tmp_path / "job/step-0000000001/manifest.json").stat()
    open_checkpoints(tmp_path, rank=3).publish(commit)
    after = (tmp_path / "job/step-0000000001/manifest.json").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_latest_only_moves_forward_when_two_publish_at_once(tmp_path):
    """A second process publishes while the first has read LATEST and not yet written it."""
    late, soon = commit_of(100), commit_of(200)
    second = threading.Thread(target=lambda: open_checkpoints(tmp_path, rank=1).publish(soon))

    class Overtaken(Files):
        def create(self, path):
            if path.endswith("LATEST"):
                second.start()
                second.join(
                    0.2
                )  # it must not get there: only the bound of a wait that would else last for ever
            return super().create(path)

    open_checkpoints(tmp_path, files=Overtaken()).publish(late)
    second.join()
    assert (tmp_path / "job/LATEST").read_text() == "step-0000000200\n"


def test_the_newest_is_the_newest_that_is_valid(tmp_path, checkpoints):
    assert checkpoints.newest() is None
    commit = save_and_publish(checkpoints, 100)
    checkpoints.save(200, packed(STATE, ""))  # never committed
    (tmp_path / "job/step-0000000300").mkdir()
    (tmp_path / "job/step-0000000300/manifest.json").write_bytes(manifest.encode(commit)[:40])
    (tmp_path / "job/step-0000000400").mkdir()
    (tmp_path / "job/step-0000000400/manifest.json").write_bytes(
        manifest.encode(commit._replace(job_id="other", step=400))
    )
    (tmp_path / "job/step-later").mkdir()
    (tmp_path / "job/LATEST").write_text("nonsense")
    assert checkpoints.newest() == commit


def test_leftovers_of_dead_attempts_of_this_rank_are_removed_and_of_no_other(tmp_path):
    for rank, attempt in ((0, 1), (0, 2), (0, 4), (1, 1)):
        scratch = tmp_path / "job" / f"tmp.rank-{rank:05}.attempt-{attempt}"
        scratch.mkdir(parents=True)
        (scratch / ".half").write_bytes(b"torn")
    checkpoints = open_checkpoints(tmp_path, attempt=3)
    checkpoints.save(1, packed(STATE, ""))
    assert [name for name in names_below(tmp_path) if "tmp" in name] == [
        "job/tmp.rank-00000.attempt-4/.half",
        "job/tmp.rank-00001.attempt-1/.half",
    ]


class FullDisk(Files):
    def __init__(self, operation):
        self.operation = operation

    def sync(self, fd):
        super().sync(fd)
        self._fail("sync")

    def write(self, fd, data, offset):
        super().write(fd, data, offset)
        self._fail("write")

    def rename(self, old, new):
        self._fail("rename")
        super().rename(old, new)

    def _fail(self, operation):
        if operation == self.operation:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("operation", ["write", "sync", "rename"])
def test_a_save_that_fails_leaves_nothing(tmp_path, operation):
    with pytest.raises(OSError, match="No space left"):
        open_checkpoints(tmp_path, files=FullDisk(operation)).save(1, packed(STATE, ""))
    assert names_below(tmp_path) == []


def test_closing_leaves_no_scratch(tmp_path):
    storage = LocalStorage(str(tmp_path), "job", Writer(0, 1))
    Checkpoints(Owner("job", 0, 1), storage).save(1, packed(STATE, ""))
    storage.close()
    assert [path.name for path in (tmp_path / "job").iterdir()] == ["step-0000000001"]
