"""A crash between any two operations leaves the previous commit or the new one: never neither, never torn (P1, P3)."""

import itertools
import os
import shutil

import pytest

from holdfast.storage.api import Bytes
from holdfast.storage.local import LocalStorage, Writer
from holdfast.worker import shard_file
from holdfast.worker.checkpoint import packed
from holdfast.worker.spool import SpooledStorage, drain, held
from tests.checkpoint.away import Away
from tests.checkpoint.disk import SAMPLE, Recorder, after_crashes, build
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


@pytest.fixture(autouse=True)
def _several_writes_a_shard(monkeypatch):
    monkeypatch.setattr(shard_file, "CHUNK_BYTES", 64)
    monkeypatch.setattr(shard_file, "PIECE_BYTES", 64)
    monkeypatch.setattr(shard_file, "_LOCAL_LANES", 1)


class Recording:
    """Something that was done to a directory, with marks, and what is found there after every crash."""

    def __init__(self, tmp_path):
        self.top = tmp_path / "recorded"
        self.top.mkdir(parents=True)
        self.files = Recorder()
        self.marks = {}
        self._crashed = tmp_path / "crashed"
        self._crashed.mkdir()

    def mark(self, name):
        self.marks[name] = len(self.files.log)

    def found(self, examine, start=0, sample=SAMPLE):
        """(operations done, what `examine` says) for each crash; the same disk is looked at once."""
        known = {}
        number = itertools.count()
        for done, tree in after_crashes(self.files.log, str(self.top), start, sample):
            key = tuple(sorted(tree.items()))
            if key not in known:
                top = self._crashed / str(next(number))
                build(top, tree)
                known[key] = examine(top / "c")
                shutil.rmtree(top)
            yield done, known[key]


@pytest.fixture
def recording(fast_path):
    return Recording(fast_path)


def record_two(recording, storage=LocalStorage):
    """Save and publish step 100, then, as another attempt, step 200."""
    commits = []
    for step, value, attempt in ((100, OLD, 1), (200, NEW, 2)):
        place = storage(str(recording.top / "c"), "job", Writer(0, attempt), recording.files)
        checkpoints = checkpoints_on(place, attempt)
        shard = checkpoints.save(step, packed(value))
        recording.mark(f"{step} prepared")
        commits.append(commit_of(step, shard, attempt=attempt))
        checkpoints.publish(commits[-1])
        recording.mark(f"{step} committed")
    return commits


def newest(top):
    return resumed(checkpoints_at(top, attempt=3))


def wrong(recording):
    """The crashes after which something else is resumed from than the previous commit or the new one."""
    marks = recording.marks
    for done, step in recording.found(newest):
        if done < marks["100 prepared"]:
            allowed = {None}
        elif done < marks["100 committed"]:
            allowed = {None, 100}
        elif done < marks["200 prepared"]:
            allowed = {100}
        else:
            allowed = {100, 200} if done < marks["200 committed"] else {200}
        if step not in allowed:
            yield done, step


def test_the_previous_commit_or_the_new_one_is_found(recording):
    record_two(recording)
    assert list(wrong(recording)) == []
    assert {step for _, step in recording.found(newest)} == {None, 100, 200}


def test_what_was_prepared_can_be_resumed_from_by_the_record_alone(recording):
    """Prepared means durable: the coordinator may commit it, whatever becomes of the manifest."""
    _, new = record_two(recording)

    def examine(top):
        checkpoints = checkpoints_at(top, attempt=3)
        checkpoints.publish(new)
        return resumed(checkpoints)

    assert {step for _, step in recording.found(examine, recording.marks["200 prepared"])} == {200}


def latest(top):
    """What LATEST names, if that is there."""
    path = top / "job/LATEST"
    if not path.exists():
        return None
    name = path.read_text(errors="replace").strip("\n")
    return name if name and (top / "job" / name / "manifest.json").exists() else "astray"


def test_latest_names_a_commit_that_is_there(recording):
    record_two(recording)
    assert {name for _, name in recording.found(latest)} == {None, "step-0000000100", "step-0000000200"}


def torn_names(recording):
    """An examination: has any file that others see another content than one that was meant?"""
    whole = set()
    for where in recording.top.rglob("*"):
        if where.is_file():
            whole.add(where.read_bytes())
    whole.add(b"step-0000000100\n")  # what LATEST was in between

    def examine(top):
        seen = (path for path in top.rglob("*") if path.is_file() and "tmp." not in path.parent.name)
        return "whole" if all(path.read_bytes() in whole for path in seen) else "torn"

    return examine


def test_whoever_sees_a_file_sees_all_of_it(recording):
    record_two(recording)
    assert {seen for _, seen in recording.found(torn_names(recording))} == {"whole"}


def test_a_commit_that_is_published_again_is_durable_then(recording):
    """Whoever publishes what is there already may find it before the one that wrote it has made it durable."""
    (commit,) = record_two(recording)[1:]
    log = recording.files.log
    unsynced = next(
        index
        for index, (name, *rest) in enumerate(log)
        if name == "rename" and rest[1].endswith("step-0000000200/manifest.json")
    )
    del log[unsynced + 1 :]  # and there the one that wrote it died
    checkpoints_at(recording.top / "c", attempt=3, files=recording.files).publish(commit)
    assert {step for _, step in recording.found(newest, len(log))} == {200}


def test_a_commit_that_is_set_aside_leaves_the_one_before(recording):
    _, new = record_two(recording)
    recording.mark("asked")
    checkpoints_at(recording.top / "c", attempt=3, files=recording.files).quarantine(new)

    def examine(top):
        kept = {name for name in names_below(top) if "step-0000000200/manifest." in name}
        return newest(top), len(kept)

    found = list(recording.found(examine, recording.marks["asked"]))
    assert {each for _, each in found} == {(200, 1), (100, 1)}
    assert {each for done, each in found if done == len(recording.files.log)} == {(100, 1)}


def test_a_checkpoint_is_dropped_as_a_whole(recording):
    record_two(recording)
    recording.mark("asked")
    checkpoints_at(recording.top / "c", attempt=3, files=recording.files).drop(100)

    def examine(top):
        checkpoints = checkpoints_at(top, attempt=3)
        old = checkpoints.published(100)
        whole = old is None or checkpoints.load(old, 0)["n"] == 100
        there = newest(top)
        checkpoints.drop(100)  # as the next process is asked again
        return there, whole, [name for name in names_below(top) if "step-0000000100" in name]

    assert {each for _, each in freeze(recording.found(examine, recording.marks["asked"]))} == {
        (200, True, ())
    }


def freeze(found):
    for done, (*rest, names) in found:
        yield done, (*rest, tuple(names))


def test_sweeping_takes_nothing_that_a_commit_has(recording):
    checkpoints_at(recording.top / "c", attempt=1, files=recording.files).save(150, packed(OLD))
    _, new = record_two(recording)
    leftover = recording.top / "c/job/step-0000000150"
    assert leftover.exists()
    recording.mark("asked")
    checkpoints_at(recording.top / "c", attempt=2, files=recording.files).sweep(new, resumed=100)
    assert not leftover.exists()

    def examine(top):
        checkpoints = checkpoints_at(top, attempt=3)
        return newest(top), checkpoints.load(checkpoints.published(100), 0)["n"]

    assert {each for _, each in recording.found(examine, recording.marks["asked"])} == {(200, 100)}


def record_spool(recording, bring=drain):
    """Commit step 100 to a storage that is there and 200 to one that is away, which is then back."""
    top, files = recording.top / "c", recording.files
    save_and_publish(checkpoints_at(top, files=files), 100, OLD)
    main, spool = Away(top, 2, files=files, gone=True), storage_at(recording.top / "spool", 2, files=files)
    storage = SpooledStorage(main, spool, "rank-00000.")
    save_and_publish(checkpoints_on(storage, 2), 200, NEW, attempt=2)
    recording.mark("held")
    end(storage)
    bring(spool, main._there, held(spool))
    recording.mark("brought")


def end(storage):
    """As a process ends: with its thread, which may be in the middle of a file."""
    storage.close()
    assert storage.wait(60.0)


def seen_and_known(top):
    """What others find in the storage; what a worker of this machine finds; what is found when it is drained again."""
    there = newest(top)
    main, spool = storage_at(top, 3), storage_at(top.parent / "spool", 3)
    storage = SpooledStorage(Away(top, 3, gone=True), spool, "rank-00000.")
    end(storage)
    storage._main = main
    here = resumed(checkpoints_on(storage, 3))
    drain(spool, main, held(spool))
    return there, here, newest(top)


def wrong_of_spool(recording):
    for done, found in recording.found(seen_and_known, recording.marks["held"], sample=12):
        there, *known = found
        if known != [200, 200] or there not in ((200,) if done >= recording.marks["brought"] else (100, 200)):
            yield done, found


def test_what_is_held_is_never_lost_nor_half_of_it_seen(recording):
    record_spool(recording)
    assert list(wrong_of_spool(recording)) == []


# Whether this notices what it is for.


class WithoutSync(Recorder):
    def sync(self, fd):
        pass


class WithoutSyncDir(Recorder):
    def sync_dir(self, path):
        pass


class NamesFirst(LocalStorage):
    """Gives a file its name before its content is durable."""

    def put(self, name, body):
        path, files = self._path(name), self._files
        self._make_durable(os.path.dirname(path))
        self._make_scratch()
        scratch = os.path.join(self._scratch, os.path.basename(path))
        fd = files.create(scratch)
        for offset, data in body.pieces():
            files.write(fd, data, offset)
        files.rename(scratch, path)
        files.sync_dir(os.path.dirname(path))
        files.sync(fd)
        files.close(fd)


class WritesInPlace(LocalStorage):
    """Fills a file under the name that others know."""

    def put(self, name, body):
        path = self._path(name)
        self._make_durable(os.path.dirname(path))
        self._fill(path, body)
        self._files.sync_dir(os.path.dirname(path))


class ForgetsDirectories(LocalStorage):
    """Makes directories and does not make them durable."""

    def _make_durable(self, directory):
        if directory != self._top:
            self._make_durable(os.path.dirname(directory))
        self._files.make_dir(directory)


@pytest.mark.parametrize("files", [WithoutSync, WithoutSyncDir])
def test_a_missing_sync_is_noticed(recording, files):
    recording.files = files()
    record_two(recording)
    assert next(wrong(recording), None)


@pytest.mark.parametrize("storage", [NamesFirst, WritesInPlace])
def test_a_file_that_is_seen_before_it_is_whole_is_noticed(recording, storage):
    record_two(recording, storage)
    assert "torn" in (seen for _, seen in recording.found(torn_names(recording)))


def test_directories_that_are_not_durable_are_noticed(recording):
    record_two(recording, ForgetsDirectories)
    assert next(wrong(recording), None)


def test_a_manifest_that_comes_before_its_shard_is_noticed(recording, fast_path):
    _, new = record_two(Recording(fast_path / "elsewhere"))
    save_and_publish(checkpoints_at(recording.top / "c", files=recording.files), 100, OLD)
    recording.mark("asked")
    checkpoints = checkpoints_at(recording.top / "c", attempt=2, files=recording.files)
    checkpoints.publish(new)
    assert checkpoints.save(200, packed(NEW)) == new.shards[0]
    assert "torn" in (step for _, step in recording.found(newest, recording.marks["asked"]))


def test_a_drop_that_begins_with_the_shards_is_noticed(recording):
    record_two(recording)
    recording.mark("asked")
    place = storage_at(recording.top / "c", files=recording.files)
    place.delete(f"step-0000000200/{name}" for name in ("rank-00000.attempt-2.safetensors", "manifest.json"))
    assert "torn" in (step for _, step in recording.found(newest, recording.marks["asked"]))


def test_latest_before_its_manifest_is_noticed(recording):
    save_and_publish(checkpoints_at(recording.top / "c", files=recording.files), 100, OLD)
    checkpoints = checkpoints_at(recording.top / "c", attempt=2, files=recording.files)
    commit = commit_of(200, checkpoints.save(200, packed(NEW)), attempt=2)
    storage_at(recording.top / "c", 2, files=recording.files).update("LATEST", lambda _: b"step-0000000200\n")
    checkpoints.publish(commit)
    assert "astray" in (name for _, name in recording.found(latest))


def takes_away_first(spool, main, names):
    for name in names:
        data = spool.read(name)
        spool.delete([name])
        main.put(name, Bytes(data))


def manifests_first(spool, main, names):
    for name in reversed(names):
        main.put(name, Bytes(spool.read(name)))
        spool.delete([name])


@pytest.mark.parametrize("bring", [takes_away_first, manifests_first])
def test_a_wrong_order_of_bringing_is_noticed(recording, bring):
    record_spool(recording, bring)
    assert next(wrong_of_spool(recording), None)
