"""Data sets under `holdfast run`, with workers that are killed on the way: P5, from the command line to the ledger."""

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from holdfast.cli.exits import EXIT
from tests.e2e.fleet import HOLDFAST, PATIENCE_S, leftovers

pytestmark = pytest.mark.e2e

CONSUME = str(Path(__file__).with_name("consume.py"))
COUNTS = (70, 1, 90, 0, 79)
SAMPLES, EPOCHS = sum(COUNTS), 2


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """Where to run it: shards in train/, room for results in out/."""
    monkeypatch.setenv("HOLDFAST_CACHE_DIR", str(tmp_path / "cache"))
    write_shards(tmp_path / "train")
    (tmp_path / "out").mkdir()
    yield
    assert not leftovers(tmp_path)


def write_shards(folder, counts=COUNTS, width=1):
    folder.mkdir()
    first = 0
    for number, count in enumerate(counts):
        shard = np.zeros((count, width), np.int64)
        shard[:, 0] = range(first, first + count)
        np.save(folder / f"{number}.npy", shard)
        first += count


def holdfast(folder, *words):
    return subprocess.run(
        [HOLDFAST, *words], cwd=folder, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )


def consume(folder, source, *event, options=(), epochs=EPOCHS):
    program = [sys.executable, CONSUME, source, "out", str(SAMPLES), str(epochs), *event]
    return holdfast(folder, "run", "--name", "r", "-n", "2", "--backoff", "0", *options, "--", *program)


def taken(folder):
    """How often each sample was taken in each epoch, along the committed history."""
    return sum(np.load(folder / f"out/{rank}.npy") for rank in (0, 1))


@contextlib.contextmanager
def coordinator(folder):
    """One that goes on with what the run's knew."""
    target = f"unix:{folder}/c.sock"
    words = ["coordinator", "--listen", target, "--state-dir", str(folder / ".holdfast/runs/r/coordinator")]
    with subprocess.Popen([HOLDFAST, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        process.stdout.readline()
        try:
            yield target
        finally:
            process.kill()


def ledger(folder):
    """What `job samples` says of the run's job."""
    (job_id,) = (path.name for path in folder.glob(".holdfast/runs/r/agent/jobs/*"))
    with coordinator(folder) as target:
        done = holdfast(folder, "job", "samples", job_id, "-o", "json", "--server", target)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)["samples"]


@pytest.mark.parametrize("scope", ["gang", "rank"])
def test_a_killed_worker_costs_no_sample_and_repeats_none(tmp_path, scope):
    done = consume(tmp_path, "train", "die", options=["--restart-scope", scope, "--data", "train=train"])
    assert done.returncode == 0, done.stderr
    assert "killed by SIGKILL" in done.stderr
    assert taken(tmp_path).tolist() == np.ones((EPOCHS, SAMPLES)).tolist()
    mine = [np.load(tmp_path / f"out/{rank}.npy").sum(axis=1).tolist() for rank in (0, 1)]
    assert [
        (line["data"], line["first_epoch"], line["last_epoch"], line["rank"], [line["samples"]] * EPOCHS)
        for line in ledger(tmp_path)
    ] == [("train", 0, EPOCHS - 1, rank, mine[rank]) for rank in (0, 1)]


def test_the_same_program_over_s3(tmp_path, bucket, monkeypatch):
    """The data set is not declared: the ranks count it, and all attempts keep to what the first of them found."""
    for path in (tmp_path / "train").iterdir():
        bucket.write(f"train/{path.name}", path.read_bytes())
        path.unlink()
    monkeypatch.setenv("USE_S3", "1")
    monkeypatch.setenv("S3_BUCKET", bucket.name)
    done = consume(tmp_path, "train/", "die")
    assert done.returncode == 0, done.stderr
    assert "killed by SIGKILL" in done.stderr
    assert taken(tmp_path).tolist() == np.ones((EPOCHS, SAMPLES)).tolist()
    kept = [name.split("/")[-2:] for name in bucket.objects()]
    assert len([name for folder, name in kept if folder == "datasets"]) == 1
    assert ["step-0000000040", "manifest.json"] in kept
    assert len(list((tmp_path / "cache/shards").iterdir())) == 4


def test_a_shard_that_changes_between_two_attempts_is_named(tmp_path):
    options = ["--data", "train=train", "--restart-budget", "1"]
    done = consume(tmp_path, "train", f"replace:{tmp_path}/train/2.npy", options=options)
    assert done.returncode == EXIT.FAILED
    sentence = f"ShardChanged: the shard {tmp_path}/train/2.npy has changed since the data set was counted: "
    assert sentence in done.stdout + done.stderr
    assert not list((tmp_path / "out").iterdir())


def test_a_shard_that_is_cut_off_while_it_is_mapped_kills_the_worker_and_is_named_by_the_next(tmp_path):
    write_shards(tmp_path / "wide", width=4096)
    options = ["--data", "train=wide", "--restart-budget", "1"]
    done = consume(tmp_path, "train", f"truncate:{tmp_path}/wide/2.npy", options=options, epochs=100)
    assert done.returncode == EXIT.FAILED
    assert "killed by SIGBUS" in done.stderr
    sentence = f"ShardChanged: the shard {tmp_path}/wide/2.npy has changed since the data set was counted: "
    assert f"{sentence}expected {90 * 4096 * 8 + 128} bytes, found 4096 bytes" in done.stdout + done.stderr


def test_a_data_set_that_is_not_there_is_no_job(tmp_path):
    (tmp_path / "train/2.npy").unlink()
    for source, sentence in [
        ("train/2.npy", f"{tmp_path}/train/2.npy is not there; name files that are, or their directory"),
        ("trian", f"{tmp_path}/trian: there is no shard; shards are files whose names end in .npy"),
    ]:
        done = consume(tmp_path, "train", options=["--data", f"train={source}"])
        assert done.returncode == EXIT.USAGE
        assert done.stderr.startswith(f"Error: {sentence}")
        assert not (tmp_path / ".holdfast").exists()
