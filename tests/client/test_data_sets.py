# ruff: noqa: F401, F811  fixtures are imported by name
"""Data sets of shards as a training program has them: what comes, in which order, and what becomes of changes."""

import gc
import json
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from holdfast.data import make
from holdfast.data.dataset import ShardDataset
from holdfast.data.errors import DataError, ShardChanged
from holdfast.data.shards import DataIndex, Declared, ShardInfo, decode, encode
from holdfast.worker.dataset import make_dataset
from holdfast.worker.errors import CheckpointMismatch
from holdfast.worker.identity import identify
from tests.client.data_sets import (
    SAMPLES,
    dataset,
    declare,
    env,
    flip,
    grow,
    numbers,
    restored,
    threads,
    train,
    wait_for_threads,
)

# What comes.


@pytest.mark.parametrize("window", [None, 1, 8])
def test_every_sample_comes_once_an_epoch_in_another_order(dataset, train, window):
    data = dataset(train, epochs=2, window=window)
    batches = list(data)
    assert len(batches) == len(data) == 2 * 9
    first, second = numbers(batches[:9]), numbers(batches[9:])
    assert sorted(first) == sorted(second) == list(range(SAMPLES))
    assert first != second
    assert [len(batch) for batch in batches[:9]] == [4] * 8 + [1]


def test_batches_are_the_same_whatever_is_made_at_once(dataset, train, monkeypatch):
    expected = [batch.tolist() for batch in dataset(train, epochs=3, window=8)]
    for together, ahead in [(1, 1), (2, 3), (5, 16)]:
        monkeypatch.setattr("holdfast.data.dataset.CHUNK_BATCHES", together)
        monkeypatch.setattr("holdfast.data.dataset.AHEAD_CHUNKS", ahead)
        assert [batch.tolist() for batch in dataset(train, epochs=3, window=8)] == expected


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_share_the_batches_of_one(dataset, train, world):
    alone = [batch.tolist() for batch in dataset(train, epochs=2, window=8)]
    ranks = [dataset(train, rank=rank, world=world, epochs=2, window=8) for rank in range(world)]
    dealt = []
    for parts in zip(*ranks, strict=True):
        whole = [None] * sum(map(len, parts))
        for rank, part in enumerate(parts):
            whole[rank::world] = part.tolist()
        dealt.append(whole)
    assert dealt == alone


def test_independent_ranks_have_samples_of_their_own(dataset, train):
    taken = [numbers(dataset(train, rank=rank, world=4, scope="rank", window=3)) for rank in range(4)]
    assert [len(part) for part in taken] == [9, 8, 8, 8]
    assert sorted(sum(taken, [])) == list(range(SAMPLES))  # noqa: RUF017


@pytest.mark.parametrize("stop", [0, 1, 7, 9, 13])
def test_it_goes_on_where_the_cursor_was(dataset, train, stop):
    whole = [batch.tolist() for batch in dataset(train, epochs=2, window=8)]
    data = dataset(train, epochs=2, window=8)
    batches = iter(data)
    before = [next(batches).tolist() for _ in range(stop)]
    again = restored(dataset(train, epochs=2, window=8), data.save())
    assert before + [batch.tolist() for batch in again] == whole


def test_the_cursor_moves_when_a_batch_is_handed_out(dataset, train):
    data = dataset(train)
    batches = iter(data)
    for taken in range(1, 9):
        next(batches)
        assert data.cursor == (0, taken)


def test_a_cursor_that_is_set_in_the_middle_is_followed(dataset, train):
    whole = [batch.tolist() for batch in dataset(train)]
    data = dataset(train)
    start = data.cursor
    batches = iter(data)
    next(batches)
    next(batches)
    data.cursor = start
    assert next(batches).tolist() == whole[0]


def test_two_iterators_share_a_cursor(dataset, train):
    data = dataset(train)
    taken = [
        numbers([batch, *([other] if (other := next(iter(data), None)) is not None else [])])
        for batch in data
    ]
    assert sorted(sum(taken, [])) == list(range(SAMPLES))  # noqa: RUF017


# Where it comes from.


def test_directories_globs_files_and_lists(dataset, train, monkeypatch):
    (train / "README.md").write_text("no shard")
    (train / "more").mkdir()
    np.save(train / "more/x.npy", np.arange(100, 103))
    assert max(numbers(dataset(train))) == 102
    assert sorted(numbers(dataset(f"{train}/*.npy"))) == list(range(SAMPLES))
    assert sorted(numbers(dataset(f"{train}/**/[!0]*.npy"))) == [100, 101, 102]
    assert sorted(numbers(dataset(train / "003.npy"))) == list(range(19, 24))
    assert sorted(numbers(dataset([train / "003.npy", f"{train}/more/x.npy"]))) == [
        *range(19, 24),
        100,
        101,
        102,
    ]
    monkeypatch.chdir(train.parent)
    assert sorted(numbers(dataset("train/003.npy"))) == list(range(19, 24))


def test_the_order_depends_on_nothing_but_the_list(dataset, train, tmp_path):
    moved = tmp_path / "elsewhere"
    expected = numbers(dataset(train))
    saved = dataset(train).save()
    train.rename(moved)
    assert numbers(restored(dataset(moved), saved)) == expected


WRONG = [
    (lambda top: top / "nothing", "there is no shard; shards are files whose names end in .npy, "),
    (lambda top: [top / "train/000.npy", top / "nothing.npy"], "nothing.npy is not there"),
    (lambda top: [top / "train/README.md"], "README.md is of no format that is known"),
    (lambda top: f"{top}/mixed/", "shards of several formats, .jsonl and .npy; say which are meant"),
    (lambda top: f"{top}/types/", "a.npy and b.npy do not hold the same: <f8 .*, and <i8 "),
    (lambda top: ["s3://a/x.npy", "s3://b/x.npy"], "must lie in one place, not in s3://a and s3://b"),
]


@pytest.mark.parametrize(("source", "sentence"), WRONG)
def test_sources_that_are_none_are_refused(dataset, train, tmp_path, source, sentence):
    (train / "README.md").write_text("no shard")
    for name, files in {"mixed": {"a.npy": 1.0, "b.jsonl": 2}, "types": {"a.npy": 1.0, "b.npy": 2}}.items():
        (tmp_path / name).mkdir()
        for file, value in files.items():
            np.save(tmp_path / name / file, np.array([value])) if "npy" in file else (
                tmp_path / name / file
            ).write_text("{}")
    with pytest.raises((DataError, ValueError), match=sentence):
        dataset(source(tmp_path))


def test_a_window_is_for_files(train):
    identity = identify({}, "train.py")
    options = {"seed": 0, "epochs": 1, "partition": None, "window": 8}
    with pytest.raises(ValueError, match="window is for data sets that are files"):
        make_dataset(10, identity, 2, **options)
    with pytest.raises(ValueError, match="window must be at least 1, not 0"):
        make_dataset(train, identity, 2, **{**options, "window": 0})
    assert isinstance(make_dataset(train, identity, 2, **options), ShardDataset)


# Changes.


CHANGES = [
    (grow, "bytes, found "),
    (flip, "expected [0-9a-f]{16}, found [0-9a-f]{16}"),
    (Path.unlink, "has vanished"),
]


@pytest.mark.parametrize(("change", "sentence"), CHANGES)
def test_a_shard_that_changes_is_an_error_that_names_it(dataset, train, change, sentence):
    data = dataset(train)
    change(train / "002.npy")
    with pytest.raises(ShardChanged, match=sentence) as wrong:
        list(data)
    assert wrong.value.file == str(train / "002.npy")
    assert "put back what was there" in str(wrong.value)
    wait_for_threads()


def test_what_came_before_an_error_comes_and_the_rest_when_it_is_mended(dataset, train, monkeypatch):
    monkeypatch.setattr("holdfast.data.dataset.CHUNK_BATCHES", 1)
    whole = numbers(dataset(train, window=1))
    data = dataset(train, window=1)
    (train / "004.npy").rename(train / "away")
    taken = []
    with pytest.raises(ShardChanged):
        taken.extend(data)
    assert numbers(taken) == whole[: len(taken) * 4]
    (train / "away").rename(train / "004.npy")
    assert numbers([*taken, *data]) == whole


@pytest.mark.parametrize(("change", "sentence"), CHANGES)
def test_a_job_counts_once_and_keeps_to_it(dataset, train, change, sentence):
    """Another rank, or the next attempt, does not take the changed data set for the data set."""
    saved = dataset(train, job="job-1", rank=1, world=2).save()
    change(train / "002.npy")
    np.save(train / "005.npy", np.arange(3))
    data = restored(dataset(train, job="job-1", world=2), saved)
    assert data.plan.samples == SAMPLES
    with pytest.raises(ShardChanged, match=sentence):
        list(data)
    with pytest.raises(CheckpointMismatch, match="with fingerprint"):
        restored(dataset(train, job="job-2", world=2), saved)


def test_outside_holdfast_it_is_fixed_when_there_are_checkpoints(dataset, train, tmp_path):
    first = dataset(train)
    assert not (tmp_path / "checkpoints").exists()
    np.save(train / "005.npy", np.arange(33, 36))
    second = dataset(train)
    assert (first.plan.samples, second.plan.samples) == (SAMPLES, SAMPLES + 3)
    saved = second.save()
    (tmp_path / "checkpoints/train/step-0000000001").mkdir()
    np.save(train / "006.npy", np.arange(36, 40))
    third = restored(dataset(train), saved)
    assert sorted(numbers(third)) == list(range(36))


def test_a_list_that_cannot_be_kept_is_told_and_does_no_harm(dataset, train, tmp_path, capfd):
    (tmp_path / "checkpoints").write_text("no directory")
    assert sorted(numbers(dataset(train, job="job-1"))) == list(range(SAMPLES))
    assert "cannot be kept in" in capfd.readouterr().err


def test_a_cursor_fits_its_data_set_window_and_seed(dataset, train):
    saved = dataset(train, window=8).save()
    with pytest.raises(CheckpointMismatch, match=r"with window 8, this run has .* with window 9"):
        restored(dataset(train, window=9), saved)
    with pytest.raises(CheckpointMismatch, match="seed=0, this run has seed=3"):
        restored(dataset(train, window=8, seed=3), saved)
    with pytest.raises(CheckpointMismatch, match="with fingerprint None"):
        restored(
            dataset(train),
            make_dataset(SAMPLES, identify({}, "a"), 4, seed=0, epochs=1, partition=None, window=None).save(),
        )


def test_a_checksum_is_computed_once(dataset, train, env, monkeypatch):
    for path in train.iterdir():
        os.utime(path, (1, 1))
    monkeypatch.setattr("holdfast.data.digests._SETTLED_NS", 0)
    dataset(train)
    monkeypatch.setattr("holdfast.data.digests._digest", lambda *_: pytest.fail("it was computed again"))
    assert sorted(numbers(dataset(train))) == list(range(SAMPLES))


def test_a_file_that_has_just_changed_may_change_again_unseen(dataset, train, env):
    dataset(train)
    assert not Path(env["HOLDFAST_CACHE_DIR"], "digests").exists()


def test_decoding_again_and_again_is_told(dataset, train, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("holdfast.data.reader.OPEN_BYTES", 200)
    monkeypatch.setattr("holdfast.data.dataset.CHUNK_BATCHES", 1)
    (tmp_path / "packed").mkdir()
    for n in range(4):
        np.savez_compressed(tmp_path / f"packed/{n}.npz", x=np.arange(10 * n, 10 * n + 10))
    for window, told in ((1, 0), (40, 1)):
        data = dataset(tmp_path / "packed", epochs=3, window=window, checkpoints=f"c{window}")
        assert sorted(numbers(batch["x"] for batch in data)) == sorted(3 * list(range(40)))
        assert capfd.readouterr().err.count("they are decoded again and again") == told


# What the job declares.


def test_a_declared_data_set_is_found_by_name_and_by_place(dataset, train, declare, monkeypatch):
    index = DataIndex(str(train), dataset(train)._reader.index.shards[2:])
    declare(Declared("other", DataIndex("/other", ())), Declared("train", index))
    monkeypatch.setattr(make, "count_shards", lambda *_: pytest.fail("it was counted again"))
    monkeypatch.chdir(train.parent)
    for source in ("train", "train/", train, f"{train}/", str(train)):
        assert sorted(numbers(dataset(source))) == list(range(7, SAMPLES))
    assert dataset("train").save()["name"] == "train"


def test_lists_of_shards_survive_being_written():
    index = DataIndex("s3://a/b", (ShardInfo("c/é.npy", 3, 4, "etag:x"), ShardInfo("d.npy", 0, 5, "")))
    assert decode(encode(index)) == index
    assert index.fingerprint == DataIndex("elsewhere", index.shards).fingerprint
    assert index.fingerprint != DataIndex("s3://a/b", index.shards[::-1]).fingerprint
    for data in (b"", b"[]", b"{}", b'{"format": 2}', encode(index)[:-3]):
        with pytest.raises(ValueError):
            decode(data)


def test_a_list_that_the_agent_wrote_badly_is_named(dataset, train, env, tmp_path):
    (tmp_path / "datasets.json").write_text("{")
    env["HOLDFAST_DATASETS"] = str(tmp_path / "datasets.json")
    with pytest.raises(DataError, match=r"datasets.json \(HOLDFAST_DATASETS\), cannot be read"):
        dataset(train)


# Threads.


def test_a_dropped_iterator_ends_its_threads(dataset, train):
    data = dataset(train, epochs=None)
    batches = iter(data)
    next(batches)
    assert threads()
    del batches
    wait_for_threads()
    for _ in data:
        break
    gc.collect()
    wait_for_threads()


def test_no_more_is_made_than_the_buffer_holds(dataset, train, monkeypatch):
    monkeypatch.setattr("holdfast.data.dataset.CHUNK_BATCHES", 1)
    monkeypatch.setattr("holdfast.data.dataset.AHEAD_CHUNKS", 5)
    made = []
    full = threading.Event()
    real = ShardDataset.__init__.__globals__["assemble"]

    def assemble(*args):
        made.append(1)
        if len(made) == 6:
            full.set()
        return real(*args)

    monkeypatch.setattr("holdfast.data.dataset.assemble", assemble)
    batches = iter(dataset(train, 1))
    next(batches)
    assert full.wait(20)
    batches.close()
    wait_for_threads()
    assert len(made) == 6


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # that it may is what is tested
def test_a_forked_child_goes_on_with_threads_of_its_own(dataset, train):
    whole = numbers(dataset(train))
    data = dataset(train)
    batches = iter(data)
    taken = [next(batches)]
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.write(writable, json.dumps(numbers(batches)).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(writable)
    with open(readable) as pipe:
        assert json.load(pipe) == whole[4:]
    assert os.waitpid(child, 0)[1] == 0
    assert numbers([*taken, *batches]) == whole
