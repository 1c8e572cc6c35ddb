# ruff: noqa: F401, F811  fixtures are imported by name
"""Data sets on S3: a real server, and before it a proxy that makes of it what networks and overload make of it."""

import functools
import threading
from pathlib import Path

import numpy as np
import pytest

from holdfast.data.dataset import _Maker
from holdfast.data.errors import DataError, ShardChanged
from holdfast.data.reader import ShardReader
from holdfast.data.shards import DataIndex, Declared
from holdfast.data.source import locate
from tests.client.data_sets import (
    SAMPLES,
    dataset,
    declare,
    flip,
    grow,
    numbers,
    threads,
    train,
    wait_for_threads,
    write_shards,
)
from tests.storage.fault_proxy import answers, gives_only, hangs, is_cut_off, then

ALL = list(range(SAMPLES))
SHARD = "train/002.npy"


@pytest.fixture
def env(tmp_path, proxy):
    return {
        "HOLDFAST_CACHE_DIR": str(tmp_path / "cache"),
        "S3_ENDPOINT": proxy.endpoint,
        "AWS_MAX_ATTEMPTS": "1",
    }


def upload(bucket, directory, prefix="train"):
    for path in directory.iterdir():
        bucket.write(f"{prefix}/{path.name}", path.read_bytes())


@pytest.fixture
def uri(bucket, train):
    """Where the shards are that lie in `train`, too."""
    upload(bucket, train)
    return f"s3://{bucket.name}/train/"


@pytest.fixture
def mirror(env, tmp_path):
    """An empty place for a mirror."""
    env["HOLDFAST_DATA_MIRROR"] = str(tmp_path / "mirror")
    return tmp_path / "mirror/train"


@pytest.fixture
def quick(monkeypatch):
    """A place that cannot be reached is asked again at once."""
    monkeypatch.setattr("holdfast.data.reader._FIRST_PAUSE", 0.01)


def cached(env):
    return [path for path in Path(env["HOLDFAST_CACHE_DIR"], "shards").glob("*") if path.suffix != ".part"]


def of(shard):
    return lambda request: request.path.endswith(shard)


def is_reading(request):
    return request.what == "GET"


class Consumer:
    """Consumes a data set in a thread of its own."""

    def __init__(self, data):
        self._batches = []
        self._thread = threading.Thread(target=lambda: self._batches.extend(data))
        self._thread.start()

    def said(self, capfd, sentence):
        """Wait until it was said; give all that was."""
        told = ""
        while sentence not in told:
            assert self._thread.is_alive(), told
            told += capfd.readouterr().err
        return told

    def ended(self):
        self._thread.join(30)
        assert not self._thread.is_alive()
        return self._batches


# What comes.


def test_shards_come_by_way_of_the_cache(dataset, uri, env, proxy):
    assert sorted(numbers(dataset(uri))) == ALL
    assert len(cached(env)) == 4  # the fifth is empty
    data = dataset(uri)
    counting = proxy.counted("GET")
    assert sorted(numbers(data)) == ALL
    assert proxy.counted("GET") == counting


def test_the_order_is_that_of_the_same_shards_here(dataset, uri, train):
    assert numbers(dataset(uri)) == numbers(dataset(train))


def test_globs_files_and_lists(dataset, uri):
    assert sorted(numbers(dataset(f"{uri}00[2-3].npy"))) == list(range(7, 24))
    assert sorted(numbers(dataset(f"{uri}003.npy"))) == list(range(19, 24))
    assert sorted(numbers(dataset([f"{uri}003.npy", f"{uri}000.npy"]))) == [*range(7), *range(19, 24)]
    with pytest.raises(DataError, match=r"009\.npy is not there"):
        dataset(f"{uri}009.npy")


def test_a_cache_that_cannot_hold_a_window_is_told_and_works(dataset, uri, env, capfd):
    env["HOLDFAST_CACHE_BYTES"] = "500"
    assert sorted(numbers(dataset(uri, 1))) == ALL
    assert "raise HOLDFAST_CACHE_BYTES, or lower window" in capfd.readouterr().err
    wait_for_threads()
    assert 0 < sum(path.stat().st_size for path in cached(env)) <= 500


def test_what_is_torn_in_the_cache_is_fetched_again(dataset, uri, env):
    list(dataset(uri))
    for path in cached(env):
        path.write_bytes(path.read_bytes()[:-3])
    assert sorted(numbers(dataset(uri))) == ALL


# Changes.


def put_changed(change, bucket, train):
    change(train / "002.npy")
    bucket.write(SHARD, (train / "002.npy").read_bytes())


CHANGES = [
    (functools.partial(put_changed, grow), "bytes, found "),
    (functools.partial(put_changed, flip), "expected etag:"),
    (lambda bucket, train: bucket.delete(SHARD), "has vanished"),
]


@pytest.mark.parametrize(("change", "sentence"), CHANGES)
def test_a_shard_that_changes_is_an_error_that_names_it(dataset, uri, bucket, train, change, sentence):
    data = dataset(uri)
    change(bucket, train)
    with pytest.raises(ShardChanged, match=sentence) as wrong:
        list(data)
    assert wrong.value.file == f"{uri}002.npy"
    wait_for_threads()


def test_a_change_is_seen_right_after_another_shard_was_fetched(dataset, uri, bucket, train, env):
    reader = dataset(uri)._reader
    reader.fetch(0)
    put_changed(flip, bucket, train)
    with pytest.raises(ShardChanged, match="expected etag:"):
        reader.fetch(2)


def test_a_shard_that_is_replaced_while_it_is_read_has_changed(
    dataset, uri, bucket, train, proxy, env, monkeypatch
):
    monkeypatch.setattr("holdfast.data.reader._PIECE", 64)
    data = dataset(uri)
    proxy.fail(
        then(lambda: put_changed(flip, bucket, train)), lambda r: is_reading(r) and of(SHARD)(r), times=1
    )
    with pytest.raises(ShardChanged, match=r"002\.npy .*expected etag:"):
        list(data)
    assert not [path for path in cached(env) if path.name.endswith("002.npy")]


def test_a_shard_whose_checksum_is_known_is_verified_while_it_is_fetched(
    dataset, uri, bucket, train, declare, env
):
    here = dataset(train)._reader.index
    declare(Declared("train", DataIndex(uri.rstrip("/"), here.shards)))
    put_changed(flip, bucket, train)
    with pytest.raises(ShardChanged, match=r"expected [0-9a-f]{16}, found"):
        list(dataset("train"))
    assert not [path for path in cached(env) if path.name.endswith("002.npy")]


# Trouble.


@pytest.mark.parametrize("trouble", [answers(503, "SlowDown"), answers(500, "InternalError"), is_cut_off])
def test_a_little_trouble_is_not_noticed(dataset, uri, env, proxy, trouble, capfd):
    env["AWS_MAX_ATTEMPTS"] = "3"
    data = dataset(uri)
    proxy.fail(trouble, of(SHARD), times=2)
    proxy.fail(gives_only(70), lambda request: is_reading(request) and of("004.npy")(request), times=2)
    assert sorted(numbers(data)) == ALL
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("trouble", [answers(503, "SlowDown"), is_cut_off, hangs])
def test_the_mirror_stands_in_for_what_cannot_be_reached(dataset, uri, env, proxy, mirror, trouble, capfd):
    write_shards(mirror)
    data = dataset(uri)
    env["S3_READ_TIMEOUT"] = "200ms"  # not while it is counted: the machine may be slow
    proxy.fail(trouble)
    assert sorted(numbers(data)) == ALL
    told = capfd.readouterr().err
    assert told.count("holdfast: ") == 1
    assert f"; its data are read from {mirror}" in told


def test_a_place_that_is_away_is_not_asked_for_every_shard(dataset, uri, bucket, env, proxy, mirror):
    counts = (3,) * 40
    write_shards(mirror, counts)
    upload(bucket, mirror)
    data = dataset(uri)
    proxy.fail(answers(503, "SlowDown"))
    before = len(proxy.requests)
    assert sorted(numbers(data)) == list(range(120))
    assert 0 < len(proxy.requests) - before <= 6  # each of the threads may have been under way


def test_a_mirror_that_holds_something_else_does_not_stand_in(
    dataset, uri, proxy, mirror, quick, monkeypatch, capfd
):
    monkeypatch.setattr("holdfast.data.reader._AWAY", 0.0)
    write_shards(mirror)
    grow(mirror / "002.npy")
    data = dataset(uri)
    proxy.fail(answers(503, "SlowDown"), of(SHARD))
    consumer = Consumer(data)
    told = consumer.said(capfd, "the mirror does not help: ")
    assert f"waiting for {uri}002.npy: " in told
    assert f"the shard {mirror}/002.npy has changed" in told
    proxy.heal()
    assert sorted(numbers(consumer.ended())) == ALL


def test_without_a_mirror_it_waits_and_says_so_each_time(dataset, uri, proxy, quick, capfd):
    reader = dataset(uri)._reader
    for number in (2, 4):
        proxy.fail(answers(503, "SlowDown"))
        opening = Consumer(reader.content(each, threading.Event()) for each in (number,))
        opening.said(capfd, f"waiting for {uri}00{number}.npy: ")
        proxy.heal()
        assert [content.file for content in opening.ended()] == [f"00{number}.npy"]


def test_waiting_ends_with_the_iterator(dataset, uri, proxy):
    data = dataset(uri)
    proxy.stop()
    making = _Maker(data._reader, data.plan, data._pieces, data._window, data.cursor, 1)
    assert threads()
    making.stop()
    wait_for_threads()
    proxy.start_again()


def test_what_no_waiting_helps_against_is_an_error(dataset, uri, proxy):
    data = dataset(uri)
    proxy.fail(answers(403, "AccessDenied"))
    with pytest.raises(DataError, match=r"train/00\d.npy cannot be read: .*refuses train/00.*s3:GetObject"):
        list(data)


# Counting.


def test_the_mirror_is_counted_while_the_place_is_away_and_pins_its_content(
    dataset, uri, bucket, train, proxy, mirror, capfd
):
    write_shards(mirror)
    proxy.fail(answers(503, "SlowDown"))
    data = dataset(uri)
    assert f"s3://{bucket.name}/train is counted in {mirror}" in capfd.readouterr().err
    proxy.heal()
    before = proxy.counted("GET")
    assert sorted(numbers(data)) == ALL
    assert proxy.counted("GET") == before + 4
    other = dataset(mirror)
    assert data.save()["fingerprint"] == other.save()["fingerprint"]


def test_what_cannot_be_counted_is_an_error(dataset, uri, proxy):
    proxy.fail(answers(503, "SlowDown"))
    with pytest.raises(DataError, match=r"the data set s3://.* cannot be counted: .*S3 at .* is in trouble"):
        dataset(uri)


# USE_S3.


def test_a_switch_moves_the_data_set_and_what_was_named_is_its_mirror(
    dataset, uri, bucket, train, env, proxy, tmp_path, monkeypatch, capfd
):
    monkeypatch.chdir(tmp_path)
    env |= {"USE_S3": "1", "S3_BUCKET": bucket.name}
    data = dataset("train/")
    assert data.save()["name"] == uri.rstrip("/")
    assert sorted(numbers(data)) == ALL
    assert len(cached(env)) == 4
    for path in cached(env):
        path.unlink()
    again = dataset("train/")
    proxy.fail(answers(503, "SlowDown"))
    assert sorted(numbers(again)) == ALL
    assert f"its data are read from {train}" in capfd.readouterr().err


def test_with_the_switch_and_nothing_here_it_waits(
    dataset, uri, bucket, env, proxy, tmp_path, monkeypatch, quick, capfd
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("holdfast.data.reader._AWAY", 0.0)
    (tmp_path / "train").rename(tmp_path / "away")
    env |= {"USE_S3": "1", "S3_BUCKET": bucket.name}
    data = dataset("train/")
    proxy.fail(answers(503, "SlowDown"))
    consumer = Consumer(data)
    consumer.said(capfd, f"waiting for {uri}")
    proxy.heal()
    assert sorted(numbers(consumer.ended())) == ALL


def test_a_switch_without_a_bucket_is_a_sentence(dataset, train, env):
    env["USE_S3"] = "1"
    with pytest.raises(DataError, match="USE_S3 is on, and S3_BUCKET names no bucket"):
        dataset(train)


def test_a_file_uri_is_the_path_that_it_names(dataset, train, env):
    data = dataset(f"file://{train}/")
    assert data._reader.index == dataset(train)._reader.index
    assert sorted(numbers(data)) == ALL
    assert cached(env) == []
    assert locate(f"file://{train}/", env) == locate(train, env)
