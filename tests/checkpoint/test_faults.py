"""A disk that fails or is full, at every call: nothing is acknowledged that is not durable, and the next try works."""

import contextlib
import errno
import fcntl
import os
import shutil

import pytest

from holdfast.storage.api import Bytes
from holdfast.worker import shard_file
from holdfast.worker.checkpoint import packed
from holdfast.worker.errors import CheckpointCorrupt
from tests.checkpoint.disk import Recorder, after_crashes, build
from tests.checkpoint.faults import Failing, error_of
from tests.checkpoint.places import (
    NEW,
    OLD,
    checkpoints_at,
    checkpoints_on,
    commit_of,
    names_below,
    resumed,
    save_and_publish,
    storage_at,
)

EVERYTHING = [
    "job/LATEST",
    "job/step-0000000100/manifest.json",
    "job/step-0000000100/rank-00000.attempt-1.safetensors",
    "job/step-0000000200/manifest.json",
    "job/step-0000000200/rank-00000.attempt-2.safetensors",
]


@pytest.fixture(autouse=True)
def _several_writes_a_shard(monkeypatch):
    monkeypatch.setattr(shard_file, "CHUNK_BYTES", 64)
    monkeypatch.setattr(shard_file, "PIECE_BYTES", 64)


@pytest.fixture(params=["full", "failed after it was done"])
def fault(request):
    return (errno.ENOSPC, False) if request.param == "full" else (errno.EIO, True)


def every_failure(fast_path, prepare, fault):
    """A prepared directory, its recorder and its failing files, for each operation that may fail, until none does."""
    at = 0
    while True:
        top = fast_path / f"top-{at}"
        top.mkdir()
        recorder = Recorder()
        prepare(top / "c", recorder)
        failing = Failing(recorder, at, *fault)
        yield top / "c", recorder, failing
        shutil.rmtree(top)
        if failing.failed is None:
            return
        at += 1


def durable_at_worst(fast_path, top, recorder, examine):
    """What `examine` says of the disk after every crash there may be now."""
    log = recorder.log
    crashes = after_crashes(log, str(top.parent), start=len(log), sample=4)
    found = set()
    for tree in {tuple(sorted(tree.items())): tree for _, tree in crashes}.values():
        build(fast_path / "crashed", tree)
        found.add(examine(fast_path / "crashed/c"))
        shutil.rmtree(fast_path / "crashed")
    return found


def newest(top):
    return resumed(checkpoints_at(top, attempt=3))


def saved_once(top, files):
    save_and_publish(checkpoints_at(top, files=files), 100, OLD)


def saved_twice(top, files):
    saved_once(top, files)
    save_and_publish(checkpoints_at(top, 2, files=files), 200, NEW, attempt=2)


def test_what_is_acknowledged_is_durable_whatever_failed_before(fast_path, fault):
    failures = set()
    for top, recorder, failing in every_failure(fast_path, saved_once, fault):
        storage = storage_at(top, 2, files=failing)
        checkpoints = checkpoints_on(storage, 2)
        acknowledged = 100
        try:
            shard = checkpoints.save(200, packed(NEW))
            commit = commit_of(200, shard, attempt=2)
            checkpoints.publish(commit)
            acknowledged = 200
        except OSError:
            assert newest(top) in (100, 200), failing.failed
        assert durable_at_worst(fast_path, top, recorder, newest) <= {acknowledged, 200}, failing.failed
        assert failing.failed or acknowledged == 200
        failing.heal()
        save_and_publish(checkpoints, 200, NEW, attempt=2)
        assert durable_at_worst(fast_path, top, recorder, newest) == {200}, failing.failed
        storage.close()
        assert names_below(top) == EVERYTHING, failing.failed
        assert [path.name for path in (top / "job").glob("tmp.*")] == [], failing.failed
        failures.add(failing.failed)
    assert failures >= {"make_dir", "create", "write", "sync", "close", "rename", "sync_dir", None}


def test_what_was_prepared_is_enough_whatever_failed_before(fast_path, fault):
    for top, recorder, failing in every_failure(fast_path, saved_once, fault):
        checkpoints = checkpoints_at(top, 2, files=failing)
        try:
            shard = checkpoints.save(200, packed(NEW))
        except OSError:
            continue

        def from_the_record(crashed, shard=shard):
            checkpoints = checkpoints_at(crashed, attempt=3)
            checkpoints.publish(commit_of(200, shard, attempt=2))
            return resumed(checkpoints)

        assert durable_at_worst(fast_path, top, recorder, from_the_record) == {200}, failing.failed


def test_a_file_whose_sync_failed_is_written_anew(fast_path):
    """A sync that is tried again may succeed and mean nothing: the kernel has forgotten what it could not write."""
    for top, recorder, failing in every_failure(fast_path, saved_once, (errno.EIO, False)):
        checkpoints = checkpoints_at(top, 2, files=failing)
        try:
            checkpoints.save(200, packed(NEW))
        except OSError:
            written = len(recorder.log)
            checkpoints.save(200, packed(NEW))
            again = [name for name, *_ in recorder.log[written:]]
            assert again.count("create") == again.count("sync") == 1, failing.failed


def test_publishing_again_after_a_failure_makes_durable(fast_path, fault):
    for top, recorder, failing in every_failure(fast_path, saved_once, fault):
        checkpoints = checkpoints_at(top, 2, files=recorder)
        commit = commit_of(200, checkpoints.save(200, packed(NEW)), attempt=2)
        publisher = checkpoints_at(top, 2, files=failing)
        try:
            publisher.publish(commit)
        except OSError:
            publisher.publish(commit)
        assert durable_at_worst(fast_path, top, recorder, newest) == {200}, failing.failed


def test_quarantine_after_a_failure(fast_path, fault):
    for top, recorder, failing in every_failure(fast_path, saved_twice, fault):
        commit = checkpoints_at(top).newest()
        checkpoints = checkpoints_at(top, 3, files=failing)
        try:
            checkpoints.quarantine(commit)
        except OSError:
            assert newest(top) in (100, 200), failing.failed
            checkpoints.quarantine(commit)
        assert durable_at_worst(fast_path, top, recorder, newest) == {100}, failing.failed


def test_dropping_after_a_failure(fast_path, fault):
    for top, recorder, failing in every_failure(fast_path, saved_twice, fault):
        checkpoints = checkpoints_at(top, 3, files=failing)
        try:
            checkpoints.drop(100)
        except OSError:
            assert newest(top) == 200, failing.failed
            old = checkpoints_at(top).published(100)
            assert old is None or checkpoints_at(top).load(old, 0)["n"] == 100, failing.failed
            checkpoints.drop(100)
        assert not (top / "job/step-0000000100").exists()

        def left(crashed):
            return newest(crashed), any("step-0000000100" in name for name in names_below(crashed))

        assert durable_at_worst(fast_path, top, recorder, left) == {(200, False)}, failing.failed


def test_sweeping_after_a_failure(fast_path, fault):
    def prepare(top, files):
        checkpoints_at(top, files=files).save(150, packed(OLD))
        saved_twice(top, files)

    for top, _, failing in every_failure(fast_path, prepare, fault):
        checkpoints = checkpoints_at(top, 2, files=failing)
        commit = checkpoints.newest()
        try:
            checkpoints.sweep(commit, 100)
        except OSError:
            assert newest(top) == 200
            checkpoints.sweep(commit, 100)
        assert names_below(top) == EVERYTHING, failing.failed


def test_nothing_is_left_when_nothing_could_be_written(fast_path):
    for top, _, failing in every_failure(fast_path, lambda top, files: None, (errno.ENOSPC, False)):
        storage = storage_at(top, files=failing)
        with contextlib.suppress(OSError):
            checkpoints_on(storage).save(100, packed(OLD))
            continue
        storage.close()
        whole = [
            "job/step-0000000100/rank-00000.attempt-1.safetensors"
        ]  # the name was not durable, the file is
        assert names_below(top) == (whole if failing.failed == "sync_dir" and any(top.rglob("rank*")) else [])
        assert list(top.rglob("tmp.*")) == [], failing.failed


def test_a_write_may_be_short(tmp_path, monkeypatch):
    whole = os.pwrite
    monkeypatch.setattr(
        os, "pwrite", lambda fd, data, offset: whole(fd, data[: max(1, len(data) // 3)], offset)
    )
    commit = save_and_publish(checkpoints_at(tmp_path), 100, OLD)
    assert checkpoints_at(tmp_path).newest() == commit
    assert newest(tmp_path) == 100


def test_a_write_that_writes_nothing_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: 0)
    with pytest.raises(OSError, match="nothing was written"):
        checkpoints_at(tmp_path).save(100, packed(OLD))


def test_a_read_may_be_short(tmp_path, monkeypatch):
    save_and_publish(checkpoints_at(tmp_path), 100, OLD)
    whole = os.preadv
    monkeypatch.setattr(
        os,
        "preadv",
        lambda fd, buffers, offset: whole(fd, [buffers[0][: max(1, len(buffers[0]) // 3)]], offset),
    )
    assert newest(tmp_path) == 100


@pytest.mark.parametrize("code", [errno.EMFILE, errno.EACCES, errno.EIO])
def test_a_directory_that_cannot_be_opened(tmp_path, monkeypatch, code):
    """Locks are taken and files opened beside the seam."""
    checkpoints = checkpoints_at(tmp_path)
    commit = commit_of(100, checkpoints.save(100, packed(OLD)))

    def fail(*args):
        raise error_of(code)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", fail)
        with pytest.raises(OSError):
            checkpoints.publish(commit)
        with pytest.raises(CheckpointCorrupt if code == errno.EIO else OSError):
            checkpoints.load(commit, 0)
    checkpoints.publish(commit)
    assert newest(tmp_path) == 100


def test_a_directory_that_was_removed_is_made_again(tmp_path):
    checkpoints = checkpoints_at(tmp_path / "c")
    save_and_publish(checkpoints, 100, OLD)
    shutil.rmtree(tmp_path / "c")
    with pytest.raises(OSError):
        checkpoints.save(200, packed(NEW))
    save_and_publish(checkpoints, 200, NEW)
    shutil.rmtree(tmp_path / "c")
    storage = storage_at(tmp_path / "c")
    storage.update("LATEST", lambda _: b"1")
    shutil.rmtree(tmp_path / "c")
    with pytest.raises(OSError):
        storage.update("LATEST", lambda _: b"2")
    storage.update("LATEST", lambda _: b"3")
    assert storage.read("LATEST") == b"3"


def test_two_threads_do_not_take_each_others_scratch(tmp_path):
    """One's failure, and the cleaning after it, while another is in the middle of a file."""
    storage = storage_at(tmp_path)

    class Body(Bytes):
        def pieces(self):
            with pytest.raises(ZeroDivisionError):
                storage.put("step-0000000001/manifest.json", Breaking(b"x"))
            storage.put("step-0000000002/a", Bytes(b"other"))
            yield from super().pieces()

    class Breaking(Bytes):
        def pieces(self):
            raise ZeroDivisionError

    storage.put("step-0000000001/a", Body(b"whole"))
    assert (storage.read("step-0000000001/a"), storage.read("step-0000000002/a")) == (b"whole", b"other")
    storage.close()
    assert names_below(tmp_path) == ["job/step-0000000001/a", "job/step-0000000002/a"]


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_child_that_is_forked_during_an_update_does_not_keep_others_out(tmp_path):
    """It has the descriptor of the lock too, and may live as long as a loader of data does."""
    storage = storage_at(tmp_path)
    until, end = os.pipe()
    with storage.locked():
        child = os.fork()
        if child == 0:
            os.read(until, 1)
            os._exit(0)
    directory = os.open(tmp_path / "job", os.O_RDONLY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.write(end, b"x")
        os.waitpid(child, 0)
        for fd in (directory, until, end):
            os.close(fd)
