# ruff: noqa: F401, F811  fixtures are imported by name
"""Data sets on the command line: `--data` counts them, and `job samples` prints the ledger."""

import json

import numpy as np
import pytest

from holdfast.cli import samples
from holdfast.cli.exits import EXIT
from holdfast.v1 import job_pb2, worker_pb2
from holdfast.wire import InvalidSpec, Violation
from tests.client.scripted import coordinator, holdfast, make_job


@pytest.fixture
def accepting(coordinator, tmp_path, monkeypatch):
    coordinator.add_job(make_job())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOLDFAST_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "train").mkdir()
    for n in range(3):
        np.save(tmp_path / f"train/{n}.npy", np.arange(10 + n))
    return coordinator


def submitted(coordinator):
    (request,) = coordinator.asked("CreateJob")
    return {found.name: found for found in request.spec.datasets}


def test_data_sets_are_counted_when_the_job_is_created(accepting, holdfast, tmp_path):
    done = holdfast("job", "submit", "--data", "train=train/", "--data", "val=train/0.npy", "--", "train.py")
    assert (done.exit_code, done.stderr) == (0, "")
    found = submitted(accepting)
    assert found["train"].uri == str(tmp_path / "train")
    assert [(shard.file, shard.samples) for shard in found["train"].shards] == [
        ("0.npy", 10),
        ("1.npy", 11),
        ("2.npy", 12),
    ]
    assert found["val"].uri == str(tmp_path / "train/0.npy")
    assert found["val"].shards[0] == found["train"].shards[0]
    assert len(found["val"].shards[0].digest) == 16
    assert found["val"].shards[0].size_bytes == (tmp_path / "train/0.npy").stat().st_size


def test_a_flag_wins_over_the_file(accepting, holdfast, tmp_path):
    (tmp_path / "job.yaml").write_text("command: [a]\ndatasets: {train: nowhere, val: train/1.npy}\n")
    holdfast("job", "submit", "-f", "job.yaml", "--data", "train=train/0.npy")
    assert {name: found.shards[0].samples for name, found in submitted(accepting).items()} == {
        "train": 10,
        "val": 11,
    }


def test_a_long_count_is_told(accepting, holdfast, monkeypatch):
    monkeypatch.setattr("holdfast.cli.job_options.PROGRESS_S", 0.0)
    done = holdfast("job", "submit", "--data", "train=train", "--", "a")
    assert done.stderr == "counting train: 1 of 3 shards\ncounting train: 2 of 3 shards\n"


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ("train", '--data "train" is not of the form NAME=VALUE'),
        ("train=nowhere", "nowhere: there is no shard; shards are files whose names end in .npy"),
        ("train=train/9.npy", "9.npy is not there"),
    ],
)
def test_what_cannot_be_counted_is_no_job(accepting, holdfast, data, sentence):
    done = holdfast("job", "submit", "--data", data, "--", "a")
    assert done.exit_code == EXIT.USAGE
    assert sentence in done.stderr
    assert accepting.asked("CreateJob") == []


def record(world_size, *cursors, rank=None):
    shards = [worker_pb2.Shard(rank=rank or n, cursor=json.dumps(cursor)) for n, cursor in enumerate(cursors)]
    return worker_pb2.CommitRecord(job_id="a", step=1, rank=rank, world_size=world_size, shards=shards)


def cursor(**fields):
    same = {"samples": 33, "batch_size": 4, "seed": 0, "partition": False, "done": False}
    return {"epoch": 0, "batch": 0, **same, **fields}


def table(*records):
    return [samples.row(line) for line in samples.ledger_of(records)]


def test_the_ledger_of_a_gang():
    last = cursor(epoch=3, batch=8, name="train")
    assert table(record(2, [last], [last])) == [
        ["train", "0 to 2, each", "0", "9 of 9", "17 of 17"],
        ["train", "0 to 2, each", "1", "9 of 9", "16 of 16"],
        ["train", "3", "0", "8 of 9", "16 of 17"],
        ["train", "3", "1", "8 of 9", "16 of 16"],
    ]


def test_the_ledger_of_independent_ranks():
    def own(rank, **fields):
        return record(2, [cursor(partition=True, world_size=2, **fields)], rank=rank)

    assert table(own(0, epoch=1, done=True), own(1, batch=2)) == [
        ["#0", "0", "0", "5 of 5", "17 of 17"],
        ["#0", "0", "1", "2 of 4", "8 of 16"],
    ]


def test_several_data_sets():
    found = table(record(1, [cursor(name="train", batch=1), cursor(epoch=1, done=True)]))
    assert [line[:2] for line in found] == [["#1", "0"], ["train", "0"]]


def test_a_job_that_has_consumed_nothing():
    assert table() == []
    assert samples.ledger_of([worker_pb2.CommitRecord(shards=[worker_pb2.Shard()])]) == []


@pytest.mark.parametrize("text", ["{", "[1]", '[{"epoch": 0}]'])
def test_a_cursor_that_is_none(text):
    broken = worker_pb2.CommitRecord(shards=[worker_pb2.Shard(rank=3, cursor=text)])
    with pytest.raises(ValueError, match="the cursor of rank 3 is none that"):
        samples.ledger_of([broken])


def test_what_the_coordinator_says_of_a_data_set_is_put_beside_the_flag():
    from holdfast.cli.job_options import explain

    wrong = InvalidSpec(
        "wrong", "", [Violation("datasets.a b", "is no name"), Violation("datasets", "are too long")]
    )
    flags = {"data": ("a b=train",), "env": (), "label": ()}
    assert explain(wrong, flags).splitlines() == ["--data a b: is no name", "--data: are too long"]
