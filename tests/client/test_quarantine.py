"""A checkpoint that is not what was committed is set aside, and the one before it is used; aloud."""

import errno
import threading

import numpy as np
import pytest

from holdfast.storage import local
from holdfast.worker import layout, manifest
from holdfast.worker.checkpoint import Checkpoints, Owner
from holdfast.worker.errors import CheckpointCorrupt, CheckpointError
from tests.checkpoint.faults import error_of
from tests.client.fake_agent import PATIENCE


def train(run, steps, every=2):
    state = run.restore(default={"w": np.zeros(30), "n": 0})
    resumed = state["n"]
    while state["n"] < steps:
        state["n"] += 1
        state["w"] += state["n"]
        run.step()
        run.checkpoint(state, every=every, wait=True)
    assert state["w"].tolist() == [sum(range(state["n"] + 1))] * 30
    return resumed


def spoil(path):
    """Flip a bit in the last byte, which is in a tensor."""
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


@pytest.fixture
def shard(uri):
    return lambda step, job="train": uri / job / f"step-{step:010}" / "rank-00000.attempt-1.safetensors"


@pytest.fixture
def trained_alone(start_alone):
    run = start_alone()
    train(run, 6)
    run.close()


# A world of one.


def test_the_one_before_is_used_and_the_step_is_done_again(trained_alone, start_alone, shard, capfd):
    whole = shard(6).read_bytes()
    spoil(shard(6))
    spoilt = shard(6).read_bytes()
    run = start_alone()
    assert train(run, 6) == 4
    run.close()
    said = capfd.readouterr().err
    assert "the checkpoint of step 6 is set aside" in said
    assert "tensor 'w'" in said
    assert shard(6).read_bytes() == whole
    kept = sorted(path.name for path in shard(6).parent.iterdir())
    assert kept == [
        "manifest.json",
        "manifest.quarantined-attempt-1.json",
        "quarantined.rank-00000.attempt-1.safetensors",
        "rank-00000.attempt-1.safetensors",
    ]
    assert (shard(6).parent / kept[2]).read_bytes() == spoilt
    assert train(start_alone(), 6) == 6


def test_several_in_a_row(trained_alone, start_alone, shard, capfd):
    for step in (6, 4):
        spoil(shard(step))
    assert train(start_alone(), 6) == 2
    said = capfd.readouterr().err
    assert all(f"the checkpoint of step {step} is set aside" in said for step in (6, 4))


def test_when_none_is_left_training_begins_anew_and_says_so(trained_alone, start_alone, shard, capfd):
    for step in (6, 4, 2):
        spoil(shard(step))
    assert train(start_alone(), 6) == 0
    assert "no valid checkpoint is left: training begins anew" in capfd.readouterr().err


def test_a_manifest_that_is_corrupt_is_told_and_kept(trained_alone, start_alone, uri, capfd):
    path = uri / "train" / layout.manifest_name(6)
    spoil(path)
    spoilt = path.read_bytes()
    run = start_alone()
    assert train(run, 6) == 4
    assert "the checkpoint of step 6 is set aside: checkpoint is corrupt" in capfd.readouterr().err
    assert (path.parent / "manifest.quarantined-unreadable.json").read_bytes() == spoilt
    assert manifest.decode(path.read_bytes()).step == 6


def test_a_read_that_fails_once_sets_nothing_aside(trained_alone, start_alone, shard, monkeypatch, capfd):
    read, failures = local.LocalReader.read_into, iter([error_of(errno.EIO)])

    def flaky(reader, buffer, offset):
        for failure in failures:
            raise failure
        read(reader, buffer, offset)

    monkeypatch.setattr(local.LocalReader, "read_into", flaky)
    assert train(start_alone(), 6) == 6
    assert "it is read once more" in capfd.readouterr().err
    assert not list(shard(6).parent.glob("*quarantined*"))


def test_a_byte_that_is_wrong_once_on_its_way_sets_nothing_aside(
    trained_alone, start_alone, shard, monkeypatch
):
    read, first = local.LocalReader.read_into, iter([True])

    def flaky(reader, buffer, offset):
        read(reader, buffer, offset)
        if offset > 8 and next(first, False):
            buffer[0] ^= 1

    monkeypatch.setattr(local.LocalReader, "read_into", flaky)
    assert train(start_alone(), 6) == 6
    assert not list(shard(6).parent.glob("*quarantined*"))


def test_a_shard_that_vanished(trained_alone, start_alone, shard, capfd):
    shard(6).unlink()
    assert train(start_alone(), 6) == 4
    assert "found no file" in capfd.readouterr().err


def test_what_another_version_wrote_ends_in_a_sentence(trained_alone, start_alone, uri, monkeypatch):
    path = uri / "train" / layout.manifest_name(6)
    commit = manifest.decode(path.read_bytes())
    with monkeypatch.context() as patch:
        patch.setattr(manifest, "FORMAT", 3)
        path.write_bytes(manifest.encode(commit))
    with pytest.raises(CheckpointError, match="has format 3"):
        start_alone().restore()


# Under holdfast.


@pytest.fixture
def gang(make_agent, start):
    """Two ranks that have committed step 6."""
    agent = make_agent(world_size=2)
    for rank in (0, 1):
        run = start(agent, rank)
        run.step(6)
        run.checkpoint({"rank": np.full(9, rank)})
    agent.wait_for(lambda: None in agent.commits)
    for rank in (0, 1):
        assert start(agent, rank, attempt=2, resume_step=6).restore()["rank"][0] == rank
    return agent


def reports(agent):
    return [report for report in agent.reports if report[2] == "KIND_CORRUPT"]


def test_it_is_reported_and_raised_when_that_was_noted(gang, start, shard, capfd):
    spoil(shard(6, "job-1"))
    gang.silent = True
    raised = []

    def restore():
        with pytest.raises(CheckpointCorrupt) as caught:
            start(gang, 0, attempt=3, resume_step=6).restore()
        raised.append(caught.value.tensor)

    thread = threading.Thread(target=restore)
    thread.start()
    gang.wait_for(lambda: reports(gang))
    thread.join(0.1)
    assert raised == []  # whoever is restarted now would resume from the same
    gang.speak()
    thread.join(PATIENCE)
    assert raised == ["rank"]
    assert reports(gang) == [(0, 3, "KIND_CORRUPT", 6)]
    assert None not in gang.commits
    assert "the checkpoint of step 6 is set aside" in capfd.readouterr().err


def test_the_other_ranks_do_not_publish_it_again(gang, start, shard):
    """Rank 1 comes when rank 0 has set it aside, and knows it from its agent still."""
    commit = gang.commits[None]
    spoil(shard(6, "job-1"))
    with pytest.raises(CheckpointCorrupt):
        start(gang, 0, attempt=3, resume_step=6).restore()
    gang.commits[None] = commit
    with pytest.raises(CheckpointCorrupt, match="set aside"):
        start(gang, 1, attempt=3, resume_step=6).restore()
    assert reports(gang) == [(0, 3, "KIND_CORRUPT", 6), (1, 3, "KIND_CORRUPT", 6)]
    assert not (shard(6, "job-1").parent / "manifest.json").exists()


def test_it_is_reported_even_when_it_cannot_be_renamed(gang, start, shard, monkeypatch, capfd):
    spoil(shard(6, "job-1"))

    def refuse(*_):
        raise error_of(errno.EROFS)

    monkeypatch.setattr(local.Files, "rename", refuse)
    with pytest.raises(CheckpointCorrupt):
        start(gang, 0, attempt=3, resume_step=6).restore()
    assert reports(gang) == [(0, 3, "KIND_CORRUPT", 6)]
    assert "its manifest could not be renamed" in capfd.readouterr().err


def test_a_corrupt_manifest_is_written_again_from_the_record(gang, start, uri):
    path = uri / "job-1" / layout.manifest_name(6)
    whole = path.read_bytes()
    spoil(path)
    assert start(gang, 1, attempt=3, resume_step=6).restore()["rank"][0] == 1
    assert path.read_bytes() == whole
    assert reports(gang) == []


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_the_record_is_enough_where_no_manifest_can_be_written(gang, start, uri, monkeypatch, capfd, code):
    (uri / "job-1" / layout.manifest_name(6)).unlink()

    def refuse(*_):
        raise error_of(code)

    with monkeypatch.context() as patch:
        patch.setattr(local.Files, "create", refuse)
        assert start(gang, 1, attempt=3, resume_step=6).restore()["rank"][0] == 1
    assert "the manifest of step 6 could not be written" in capfd.readouterr().err


def test_a_superseded_attempt_publishes_nothing(gang, start, uri, capfd):
    """An attempt that hears late that its checkpoint was committed, when a later one has committed that step."""
    newer = manifest.decode((uri / "job-1" / layout.manifest_name(6)).read_bytes())._replace(attempt=9)
    Checkpoints(Owner("job-1", 0, 9), local.LocalStorage(str(uri), "job-1")).publish(newer)
    gang.drop()  # and says again, when it is back, what it was told
    run = start(gang, 0, attempt=1)
    run._checkpoints()._open().submit(6, newer.shards[0])
    assert run._checkpoints()._open().wait(6, PATIENCE)
    assert manifest.decode((uri / "job-1" / layout.manifest_name(6)).read_bytes()) == newer
    assert "step 6 in" in (said := capfd.readouterr().err)
    assert "was committed by attempt 9 since" in said
