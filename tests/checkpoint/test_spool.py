"""A storage that is away: nothing is lost, nothing half of a checkpoint is seen, and all of it is there in the end."""

import threading

import pytest

from holdfast.storage.api import Bytes, StorageError, Unreachable
from holdfast.storage.local import LocalStorage
from holdfast.worker import spool as spool_module
from holdfast.worker.checkpoint import packed
from holdfast.worker.errors import CheckpointCorrupt
from holdfast.worker.manifest import Shard
from holdfast.worker.spool import SpooledStorage, drain, drain_directory, held
from tests.checkpoint.away import Away
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

PATIENCE = 20.0
LEFT = ["job/DESTINATION"]


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch):
    monkeypatch.setattr(spool_module, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(spool_module, "LAST_PAUSE", 0.01)


class Node:
    """The spool of one machine, and what its ranks see."""

    def __init__(self, tmp_path, name="spool"):
        self.top = tmp_path / "main"
        self.spool_top = tmp_path / name
        self.drained = []
        self.noted = True
        self._open = []

    def start(self, attempt=1, rank=0, *, gone=True, local_rank=0):
        """One worker: its storage, what is behind it, and its checkpoints."""
        main = Away(self.top, attempt, rank, gone=gone)
        dead = attempt if local_rank == 0 else 0
        storage = SpooledStorage(
            main, storage_at(self.spool_top, attempt, rank), f"rank-{rank:05}.", self.on_drained, dead
        )
        self._open.append(storage)
        return main, storage, checkpoints_on(storage, attempt, rank)

    def on_drained(self, name):
        if self.noted:
            self.drained.append(name)
        return self.noted

    def close(self):
        for storage in self._open:
            storage.close()


@pytest.fixture
def node(tmp_path):
    node = Node(tmp_path)
    yield node
    node.close()


@pytest.fixture
def other_node(tmp_path):
    node = Node(tmp_path, "other-spool")
    yield node
    node.close()


def test_a_storage_that_is_there_is_used_and_nothing_is_held(node):
    _, _, checkpoints = node.start(gone=False)
    commit = save_and_publish(checkpoints, 100, OLD)
    assert not commit.shards[0].local_only
    assert resumed(checkpoints_at(node.top)) == 100
    assert not node.spool_top.exists()


def test_what_cannot_go_there_is_held_and_brought_when_it_can(node):
    main, storage, checkpoints = node.start()
    commits = [save_and_publish(checkpoints, step, state) for step, state in ((100, OLD), (200, NEW))]
    assert [commit.shards[0].local_only for commit in commits] == [True, True]
    assert resumed(checkpoints) == 200
    assert names_below(node.top) == []
    main.gone = False
    assert storage.wait(PATIENCE)
    assert node.drained == [f"step-{step:010}/rank-00000.attempt-1.safetensors" for step in (100, 200)]
    assert (node.top / "job/LATEST").read_text() == "step-0000000200\n"
    assert resumed(checkpoints_at(node.top)) == 200
    assert names_below(node.spool_top) == LEFT
    assert not any(node.spool_top.glob("job/step-*"))


def test_only_the_first_write_waits_for_a_storage_that_is_away(node):
    main, _, checkpoints = node.start()
    for step in (100, 200, 300):
        checkpoints.publish(commit_of(step, checkpoints.save(step, packed(OLD))))
    asked = [operation for thread, operation in main.asked if thread != "holdfast-drain"]
    assert asked == ["put"]


def test_when_it_is_back_writes_go_there_again(node):
    main, storage, checkpoints = node.start()
    checkpoints.save(100, packed(OLD))
    main.gone = False
    assert storage.wait(PATIENCE)
    assert not checkpoints.save(200, packed(NEW)).local_only
    assert names_below(node.spool_top) == LEFT


def test_a_manifest_is_held_until_every_shard_that_it_names_is_there(node, other_node):
    """Two ranks on two machines, of which the second comes back later."""
    main, storage, checkpoints = node.start()
    other_main, other_storage, other = other_node.start(rank=1)
    shards = checkpoints.save(100, packed(OLD)), other.save(100, packed(OLD))
    checkpoints.publish(commit_of(100, *shards))
    main.gone = False
    wait_until(lambda: not storage._away)  # all that can be brought has been
    assert not storage.wait(0)
    assert checkpoints_at(node.top).newest() is None
    assert names_below(node.top) == ["job/step-0000000100/rank-00000.attempt-1.safetensors"]
    other_main.gone = False
    assert storage.wait(PATIENCE)
    assert other_storage.wait(PATIENCE)
    assert resumed(checkpoints_at(node.top)) == 100


def test_a_manifest_that_waits_for_others_keeps_no_write_from_the_storage(node, other_node):
    main, storage, checkpoints = node.start()
    _, _, other = other_node.start(rank=1)
    checkpoints.publish(commit_of(100, checkpoints.save(100, packed(OLD)), other.save(100, packed(OLD))))
    main.gone = False
    wait_until(lambda: not storage._away)
    assert not checkpoints.save(200, packed(NEW)).local_only


def wait_until(predicate):
    done = threading.Event()
    for _ in range(int(PATIENCE / 0.01)):
        if predicate() or done.wait(0.01):
            return
    raise AssertionError("it never happened")


def test_two_ranks_of_a_machine_share_a_spool(node):
    started = [node.start(rank=rank, local_rank=rank) for rank in (0, 1)]
    shards = [checkpoints.save(100, packed(OLD)) for _, _, checkpoints in started]
    started[0][2].publish(commit_of(100, *shards))
    assert all(resumed(checkpoints) == 100 for _, _, checkpoints in started)
    for main, _, _ in started:
        main.gone = False
    assert all(storage.wait(PATIENCE) for _, storage, _ in started)
    assert sorted(node.drained) == [
        f"step-0000000100/rank-{rank:05}.attempt-1.safetensors" for rank in (0, 1)
    ]
    assert names_below(node.spool_top) == LEFT
    assert resumed(checkpoints_at(node.top)) == 100


@pytest.mark.parametrize("brought", range(4))
def test_whoever_comes_next_brings_the_rest(node, brought, monkeypatch):
    """Killed after so many of the steps of bringing: two shards and two manifests."""
    _, storage, checkpoints = node.start()
    for step, state in ((100, OLD), (200, NEW)):
        save_and_publish(checkpoints, step, state)
    storage.close()
    spool, main = storage_at(node.spool_top), storage_at(node.top)
    names = held(spool)
    assert len(names) == 4
    drain(spool, main, names[:brought])
    with monkeypatch.context() as patch:  # and in the middle of the next one: it is there, and still held
        patch.setattr(LocalStorage, "delete", lambda *_: None)
        drain(spool, main, names[brought : brought + 1])
    _, again, _ = node.start(attempt=2, gone=False)
    assert again.wait(PATIENCE)
    assert len(node.drained) == max(0, 2 - brought)
    assert resumed(checkpoints_at(node.top)) == 200
    assert names_below(node.spool_top) == LEFT


def test_what_is_held_is_restored_while_the_storage_is_away(node):
    _, storage, checkpoints = node.start()
    save_and_publish(checkpoints, 100, OLD)
    storage.close()
    main, _, again = node.start(attempt=2)
    assert again.steps() == [100]
    assert resumed(again) == 100
    assert main.gone


def test_while_the_storage_is_away_nobody_takes_an_old_checkpoint_for_the_newest(node):
    """Only a shard is held, of a checkpoint that was never committed; what is in the storage can't be known."""
    save_and_publish(checkpoints_at(node.top), 100, OLD)
    _, _, checkpoints = node.start(attempt=2)
    checkpoints.save(200, packed(NEW))
    with pytest.raises(Unreachable):
        checkpoints.newest()


def test_a_superseded_manifest_that_was_held_replaces_nothing(node, capfd):
    _, storage, old = node.start(attempt=1)
    stale = commit_of(200, old.save(200, packed(OLD)), attempt=1)
    old.publish(stale)
    storage.close()
    newer = save_and_publish(checkpoints_at(node.top, attempt=2), 200, NEW, attempt=2)
    _, again, _ = node.start(attempt=3, gone=False)
    assert again.wait(PATIENCE)
    assert checkpoints_at(node.top).published(200) == newer
    assert names_below(node.spool_top) == LEFT
    assert "was committed by attempt 2 since" in capfd.readouterr().err


def test_a_superseded_attempt_replaces_no_manifest_that_is_held(node):
    _, _, newer = node.start(attempt=2)
    commit = save_and_publish(newer, 200, NEW, attempt=2)
    _, _, old = node.start(attempt=1)
    with pytest.raises(FileExistsError, match="attempt 2"):
        old.publish(commit_of(200, old.save(200, packed(OLD)), attempt=1))
    assert newer.published(200).shards[0].file == commit.shards[0].file


def test_shards_of_dead_attempts_are_brought_whichever_rank_wrote_them(node):
    """Rank 1 runs elsewhere now."""
    _, first, _ = node.start(rank=0)
    _, second, checkpoints = node.start(rank=1, local_rank=1)
    checkpoints.save(100, packed(OLD))
    first.close()
    second.close()
    _, again, _ = node.start(attempt=2, rank=0, gone=False)
    assert again.wait(PATIENCE)
    assert names_below(node.top) == ["job/step-0000000100/rank-00001.attempt-1.safetensors"]
    assert node.drained == []  # rank 0 can't speak for rank 1


def test_a_checkpoint_that_is_dropped_while_it_is_held_is_gone(node):
    main, storage, checkpoints = node.start()
    for step, state in ((100, OLD), (200, NEW)):
        save_and_publish(checkpoints, step, state)
    with pytest.raises(Unreachable):
        checkpoints.drop(100)  # and is asked to again
    main.gone = False
    assert storage.wait(PATIENCE)
    checkpoints.drop(100)
    assert not any("step-0000000100" in name for name in names_below(node.top))
    assert resumed(checkpoints_at(node.top)) == 200


@pytest.mark.parametrize("what", ["rank-00000.attempt-1.safetensors", "manifest.json"])
def test_a_checkpoint_that_is_dropped_while_it_is_brought_is_gone(node, what):
    main, storage, checkpoints = node.start()
    save_and_publish(checkpoints, 100, OLD)
    dropping = threading.Thread(target=checkpoints.drop, args=(100,))
    put = main._there.put

    def slow(name, body):
        if name.endswith(what) and not dropping.ident:
            dropping.start()
            dropping.join(0.2)  # it may get through or have to wait; the end is the same
        put(name, body)

    main._there.put = slow
    main.gone = False
    assert storage.wait(PATIENCE)
    dropping.join(PATIENCE)
    assert not dropping.is_alive()
    assert names_below(node.top) in ([], ["job/LATEST"])
    assert names_below(node.spool_top) == LEFT


def test_a_checkpoint_that_is_half_way_is_set_aside_at_both_ends(node, monkeypatch):
    _, storage, checkpoints = node.start()
    commit = save_and_publish(checkpoints, 100, OLD)
    storage.close()
    with monkeypatch.context() as patch:
        patch.setattr(LocalStorage, "delete", lambda *_: None)
        drain(storage_at(node.spool_top), storage_at(node.top), held(storage_at(node.spool_top)))
    main, storage, checkpoints = node.start(attempt=2, gone=True)
    main.gone = False
    checkpoints.quarantine(commit)
    assert checkpoints.newest() is None
    assert storage.wait(PATIENCE)
    assert checkpoints_at(node.top).newest() is None
    assert names_below(node.spool_top) == LEFT


def test_a_spool_that_is_full_is_an_error_and_the_storage_is_tried_again(node, monkeypatch):
    main, storage, checkpoints = node.start()

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(storage._spool, "put", full)
        with pytest.raises(OSError, match="No space"):
            checkpoints.save(100, packed(OLD))
    main.gone = False
    checkpoints.save(100, packed(OLD))
    assert storage.wait(PATIENCE)
    assert names_below(node.top) == ["job/step-0000000100/rank-00000.attempt-1.safetensors"]


def test_what_cannot_be_read_in_the_spool_holds_nothing_back(node, capfd):
    main, storage, checkpoints = node.start()
    for step, state in ((100, OLD), (200, NEW)):
        save_and_publish(checkpoints, step, state)
    (node.spool_top / "job/step-0000000100/manifest.json").write_bytes(b"{")
    main.gone = False
    assert storage.wait(PATIENCE)
    assert resumed(checkpoints_at(node.top)) == 200
    assert checkpoints_at(node.top).published(100) is None
    assert names_below(node.spool_top) == [*LEFT, "job/step-0000000100/unreadable.manifest.json"]
    assert "cannot be read" in capfd.readouterr().err


def test_a_shard_that_the_disk_cannot_read_holds_nothing_back(node, monkeypatch):
    main, _, checkpoints = node.start()
    for step, state in ((100, OLD), (200, NEW)):
        save_and_publish(checkpoints, step, state)
    whole = spool_module._FileBody.__init__

    def bad_sector(body, reader):
        if "step-0000000100" in reader.path:
            raise OSError(5, "Input/output error")
        whole(body, reader)

    monkeypatch.setattr(spool_module._FileBody, "__init__", bad_sector)
    main.gone = False
    wait_until(lambda: checkpoints_at(node.top).newest() is not None)
    assert resumed(checkpoints_at(node.top)) == 200


def test_a_bug_in_bringing_does_not_end_it(node, monkeypatch, capfd):
    main, storage, checkpoints = node.start()
    save_and_publish(checkpoints, 100, OLD)
    bugs = iter([ZeroDivisionError("a bug")] * 3)
    real = spool_module.drain

    def flaky(*args):
        for bug in bugs:
            raise bug
        return real(*args)

    monkeypatch.setattr(spool_module, "drain", flaky)
    main.gone = False
    assert storage.wait(PATIENCE)
    assert resumed(checkpoints_at(node.top)) == 100
    assert "a bug" in capfd.readouterr().err


def test_a_shard_on_another_machine_is_told_from_one_that_is_lost(node, other_node):
    _, _, other = other_node.start(rank=1)
    _, _, checkpoints = node.start(rank=0)
    shards = checkpoints.save(100, packed(OLD)), other.save(100, packed(OLD))
    checkpoints.publish(commit_of(100, *shards))
    main, _, again = node.start(attempt=2, rank=1, local_rank=1)
    main.gone = False
    assert again.is_elsewhere(again.published(100), 1)
    assert not again.is_elsewhere(again.published(100), 0)
    with pytest.raises(CheckpointCorrupt):
        again.load(again.published(100), 1)
    lost = commit_of(300, Shard(1, "rank-00001.attempt-1.safetensors", 1, "", ""))
    assert not again.is_elsewhere(lost, 1)


# Spools whose workers are gone.


def test_a_directory_is_drained_without_its_workers(node):
    started = [node.start(rank=rank) for rank in (0, 1)]
    started[0][2].publish(
        commit_of(100, *(checkpoints.save(100, packed(OLD)) for *_, checkpoints in started))
    )
    for _, storage, _ in started:
        storage.close()
    told = []
    assert drain_directory(str(node.spool_top), told.append) == []
    assert len(told) == 3
    assert resumed(checkpoints_at(node.top)) == 100
    assert list(node.spool_top.rglob("*")) == [node.spool_top / "job"]


def test_what_cannot_be_drained_yet_is_said_to_be_left(node, other_node):
    _, storage, checkpoints = node.start()
    _, _, other = other_node.start(rank=1)
    checkpoints.publish(commit_of(100, checkpoints.save(100, packed(OLD)), other.save(100, packed(OLD))))
    storage.close()
    root = node.spool_top / "job"
    assert drain_directory(str(root)) == [str(root / "step-0000000100/manifest.json")]
    assert drain_directory(str(other_node.spool_top)) == []
    assert drain_directory(str(other_node.spool_top)) == []  # nothing is left, which is no error
    assert drain_directory(str(root)) == []
    assert resumed(checkpoints_at(node.top)) == 100


def test_a_directory_that_is_no_spool_is_refused(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/notes.txt").touch()
    with pytest.raises(StorageError, match="is no spool"):
        drain_directory(str(tmp_path / "a"))
    with pytest.raises(StorageError, match="is no spool"):
        drain_directory(str(tmp_path / "nothing"))


def test_closing_says_what_is_still_held(node, capfd):
    _, storage, checkpoints = node.start()
    save_and_publish(checkpoints, 100, OLD)
    storage.close()
    assert f"2 files of checkpoints are only in {node.spool_top}/job yet" in capfd.readouterr().err


def test_bytes_of_a_spool_are_those_that_were_put(node):
    _, storage, _ = node.start()
    storage.put("step-0000000001/rank-00000.attempt-1.safetensors", Bytes(b"abc"))
    assert storage.read("step-0000000001/rank-00000.attempt-1.safetensors") == b"abc"
    assert [entry.size for entry in storage._spool.files("step-0000000001")] == [3]


def test_a_shard_stays_held_until_somebody_has_heard_that_it_is_in_the_storage(node):
    """Or a death in between would leave a commit that is said to be on this machine alone, for ever."""
    node.noted = False
    main, storage, checkpoints = node.start()
    shard = checkpoints.save(100, packed({"n": 1}))
    name = f"step-0000000100/{shard.file}"
    main.gone = False
    wait_until(lambda: [entry.name for entry in main.files()] == [name])
    puts = main.puts
    assert storage.holds(name)
    node.noted = True
    assert storage.wait(PATIENCE)
    assert node.drained == [name]
    assert not storage.holds(name)
    assert main.puts == puts  # once there it is not brought again


def test_whoever_is_done_waits_for_what_can_be_brought_and_not_for_a_storage_that_is_away(node, monkeypatch):
    monkeypatch.setattr(spool_module, "FIRST_PAUSE", 2 * PATIENCE)  # finishing is what ends the pause
    monkeypatch.setattr(spool_module, "LAST_PAUSE", 2 * PATIENCE)
    main, storage, checkpoints = node.start()
    save_and_publish(checkpoints, 100, OLD)
    assert not storage.finish(PATIENCE)
    asked = len(main.asked)
    assert asked
    storage.close()
    main, storage, _ = node.start(attempt=2)  # which begins with a try
    wait_until(lambda: main.asked)
    main.gone = False
    assert storage.finish(PATIENCE)
    assert checkpoints_at(node.top).newest().step == 100
