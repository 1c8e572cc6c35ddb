"""A flipped bit at any place in any file: what is restored is what was saved, or it is refused and named."""

import numpy as np
import pytest

from holdfast.worker import layout, manifest, shard_file
from holdfast.worker.checkpoint import packed
from holdfast.worker.errors import CheckpointCorrupt, CheckpointError
from holdfast.worker.shard_file import ShardFile
from holdfast.worker.verify import verify
from tests.checkpoint.places import OLD, checkpoints_at, commit_of, same, save_and_publish, storage_at

STATE = {
    "wide": np.arange(20, dtype=np.float64),  # several chunks, the last one partial
    "even": np.arange(32, dtype=np.uint8),  # chunks that end where the tensor does
    "half": np.arange(7, dtype=np.float16),
    "none": np.zeros((0, 3), dtype=np.int32),
    "one": np.array(True),
    "n": 200,
}
METRICS = {"loss": 0.25}
CURSOR = '[{"epoch":1,"at":"é"}]'


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(shard_file, "CHUNK_BYTES", 16)
    monkeypatch.setattr(shard_file, "PIECE_BYTES", 8)


@pytest.fixture
def top(fast_path):
    save_and_publish(checkpoints_at(fast_path), 100, OLD)
    checkpoints = checkpoints_at(fast_path)
    checkpoints.publish(commit_of(200, checkpoints.save(200, packed(STATE, CURSOR, METRICS))))
    return fast_path


def flips(path):
    """Flips one bit of every byte, another one each time; every bit of some. The file is whole again after each."""
    whole = path.read_bytes()
    for at in range(len(whole)):
        for bit in range(8) if at % 16 == 0 else [at * 5 % 8]:
            torn = bytearray(whole)
            torn[at] ^= 1 << bit
            path.write_bytes(torn)
            yield at, bit
    path.write_bytes(whole)


def test_any_bit_of_a_shard(top):
    commit = checkpoints_at(top).newest()
    path = top / "job/step-0000000200" / commit.shards[0].file
    regions = regions_of(path, commit)
    hit = set()
    for at, bit in flips(path):
        with pytest.raises(CheckpointCorrupt) as caught:
            checkpoints_at(top).load(commit, 0)
        assert caught.value.file == str(path)
        tensor = regions(at)
        assert caught.value.tensor == tensor, (at, bit)
        hit.add(tensor)
    assert hit == {None, "wide", "even", "half", "one"}
    assert same(checkpoints_at(top).load(commit, 0), STATE)


def regions_of(path, commit):
    shard = commit.shards[0]
    with storage_at(path.parents[2]).open(f"step-0000000200/{shard.file}") as reader:
        places = ShardFile(reader, "", shard.size_bytes, shard.digest).places

    def region(at):
        return next((name for name, place in places.items() if place.start <= at < place.end), None)

    return region


def test_any_bit_of_a_shard_is_named_by_verify(top):
    commit = checkpoints_at(top).newest()
    path = top / "job/step-0000000200" / commit.shards[0].file
    whole = path.read_bytes()
    for at in range(0, len(whole), 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1 :])
        bad = [verdict for verdict in verify(storage_at(top), every=True) if not verdict.ok]
        assert [verdict.step for verdict in bad] == [200]
        assert commit.shards[0].file in bad[0].problem


def test_any_bit_of_a_manifest(top):
    commit = checkpoints_at(top).newest()
    path = top / "job" / layout.manifest_name(200)
    for at, bit in flips(path):
        checkpoints = checkpoints_at(top)
        assert checkpoints.published(200) in (None, commit), (at, bit)
        if checkpoints.published(200) is None:
            with pytest.raises(CheckpointCorrupt, match="manifest"):
                checkpoints.manifest(200)
            assert checkpoints.newest().step == 100
            (bad,) = [verdict for verdict in verify(storage_at(top)) if not verdict.ok]
            assert bad.where == "step-0000000200"
    assert checkpoints_at(top).newest() == commit


@pytest.mark.parametrize("cut", [0, 1, 8, 100, -2])
def test_a_manifest_that_is_cut_off(top, cut):
    path = top / "job" / layout.manifest_name(200)
    path.write_bytes(path.read_bytes()[:cut])
    assert checkpoints_at(top).newest().step == 100


def test_no_bit_of_latest_matters_and_the_next_commit_mends_it(top):
    commit = checkpoints_at(top).newest()
    path = top / "job/LATEST"
    for at, bit in flips(path):
        checkpoints = checkpoints_at(top)
        assert checkpoints.newest() == commit
        checkpoints.publish(commit)
        assert path.read_bytes() == b"step-0000000200\n", (at, bit)


def test_latest_stays_with_a_later_checkpoint_that_is_there(top):
    checkpoints = checkpoints_at(top)
    checkpoints.publish(checkpoints.published(100))
    assert (top / "job/LATEST").read_bytes() == b"step-0000000200\n"


def test_latest_goes_back_from_a_checkpoint_that_was_set_aside(top):
    checkpoints = checkpoints_at(top)
    checkpoints.quarantine(checkpoints.published(200))
    save_and_publish(checkpoints, 150, OLD)
    assert (top / "job/LATEST").read_bytes() == b"step-0000000150\n"


def test_a_manifest_of_another_version_is_no_corrupt_one(top):
    """It is not set aside, nor is an older checkpoint taken in its place without a word."""
    commit = checkpoints_at(top).newest()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifest, "FORMAT", 3)
        (top / "job" / layout.manifest_name(200)).write_bytes(manifest.encode(commit))
    with pytest.raises(CheckpointError, match="has format 3, and this version of holdfast reads 2"):
        checkpoints_at(top).newest()


def test_a_manifest_that_leads_out_of_its_directory_is_named_by_verify(top):
    commit = checkpoints_at(top).newest()
    astray = commit.shards[0]._replace(file="../../../secret")
    path = top / "job" / layout.manifest_name(200)
    path.write_bytes(manifest.encode(commit._replace(shards=(astray,))))
    (verdict,) = verify(storage_at(top))
    assert (verdict.ok, verdict.step) == (False, 200)
    assert "is no name below" in verdict.problem
