"""A crash between any two operations leaves the previous commit or the new one (P1, P3).

The operations of a save and a publish are recorded at the seam of the storage. After every prefix of them the disk
is rebuilt as three kinds of crash would leave it, and a new process looks for what to resume from.
"""

import itertools
import os
from pathlib import Path

import numpy as np
import pytest

from holdfast.storage.local import Files, LocalStorage, Writer
from holdfast.worker.checkpoint import Checkpoints, Owner, packed
from holdfast.worker.manifest import Commit

OLD = {"w": np.arange(4.0), "n": 100}
NEW = {"w": np.arange(4.0) + 1, "n": 200}


class Recorder(Files):
    """Does what it is told, and remembers it."""

    def __init__(self):
        self.log = []

    def make_dir(self, path):
        super().make_dir(path)
        self.log.append(("make_dir", path))

    def write(self, path, write):
        super().write(path, write)
        self.log.append(("write", path, Path(path).read_bytes()))

    def sync(self, path):
        super().sync(path)
        self.log.append(("sync", path))

    def rename(self, old, new):
        super().rename(old, new)
        self.log.append(("rename", old, new))

    def sync_dir(self, path):
        super().sync_dir(path)
        self.log.append(("sync_dir", path))

    def remove(self, path):
        super().remove(path)
        self.log.append(("remove", path))


class File:
    def __init__(self, data):
        self.data = data  # what a reader sees
        self.synced = data[: len(data) // 2]  # what a crash leaves at worst: half of it reached the disk


def parent(path):
    return os.path.dirname(path) or "."


class Disk:
    """What a file system promises: contents after sync, names after sync_dir, nothing before."""

    def __init__(self):
        self.names = {}  # path -> File, or None for a directory, as a reader sees them
        self.durable = {}  # the same after a crash that keeps nothing it need not

    def apply(self, operation, path, *rest):
        if operation == "make_dir":
            self.names.setdefault(path, None)
        elif operation == "write":
            self.names[path] = File(*rest)
        elif operation == "sync":
            self.names[path].synced = self.names[path].data
        elif operation == "rename":
            self.names[rest[0]] = self.names.pop(path)
        elif operation == "remove":
            self.names.pop(path)
        elif operation == "sync_dir":
            inside = {name: node for name, node in self.names.items() if parent(name) == path}
            gone = [name for name in self.durable if parent(name) == path and name not in inside]
            self.durable.update(inside)
            for name in gone:
                del self.durable[name]

    def after(self, crash):
        """What is there after a crash, as {path: bytes, or None for a directory}."""
        if crash == "process died":
            return {path: node and node.data for path, node in self.names.items()}
        names = self.names if crash == "power lost, names kept" else self.durable
        return {path: node and node.synced for path, node in names.items()}


CRASHES = ["process died", "power lost, names kept", "power lost, only what was synced kept"]


def open_checkpoints(top, attempt, files=None):
    return Checkpoints(Owner("job", 0, attempt), LocalStorage(str(top), "job", Writer(0, attempt), files))


def commit_of(step, shard, attempt):
    return Commit("job", step, attempt, None, 1, 1000 + step, (shard,))


def record(top):
    """Save and publish step 100, then step 200. Returns the operations and how many belong to each part."""
    files = Recorder()
    marks = []
    commits = []
    for step, value, attempt in ((100, OLD, 1), (200, NEW, 2)):
        checkpoints = open_checkpoints(top, attempt, files)
        commits.append(commit_of(step, checkpoints.save(step, packed(value, "")), attempt))
        marks.append(len(files.log))
        checkpoints.publish(commits[-1])
        marks.append(len(files.log))
    return files.log, marks, commits


def rebuild(top, tree):
    """Put a tree on a real disk, without what lies in directories that are not there."""
    top.mkdir()
    for path, data in sorted(tree.items()):
        target = top / path
        if data is None and target.parent.is_dir():
            target.mkdir()
        elif data is not None and target.parent.is_dir():
            target.write_bytes(data)


def states(tmp_path, log, start):
    """Every disk that a crash after `start` or more operations may leave: (operations done, crash, directory)."""
    relative = [
        (name, *(os.path.relpath(x, tmp_path / "recorded") if isinstance(x, str) else x for x in rest))
        for name, *rest in log
    ]
    number = itertools.count()
    for done in range(start, len(log) + 1):
        for crash in CRASHES:
            disk = Disk()
            for operation in relative[:done]:
                disk.apply(*operation)
            top = tmp_path / f"crash-{next(number)}"
            rebuild(top, disk.after(crash))
            yield done, crash, top


def test_after_every_operation_the_previous_commit_or_the_new_one_is_found(tmp_path):
    (tmp_path / "recorded").mkdir()
    log, marks, (old, new) = record(tmp_path / "recorded" / "c")
    seen = set()
    for done, crash, top in states(tmp_path, log, start=0):
        where = f"after {done} of {len(log)} operations, {crash}"
        found = open_checkpoints(top / "c", attempt=3).newest()
        if done < marks[0]:
            assert found is None, where
            continue
        assert found in ((None, old) if done < marks[1] else (old, new) if done < len(log) else (new,)), where
        if found:
            value = open_checkpoints(top / "c", attempt=3).load(found, 0)
            expected = OLD if found == old else NEW
            assert value["n"] == expected["n"], where
            assert value["w"].tolist() == expected["w"].tolist(), where
            seen.add(found.step)
    assert seen == {100, 200}


def test_what_was_prepared_can_be_resumed_from_whatever_happens_to_the_manifest(tmp_path):
    """Prepared means durable: the coordinator may commit it, and then the record alone must be enough."""
    (tmp_path / "recorded").mkdir()
    log, marks, (_, new) = record(tmp_path / "recorded" / "c")
    for done, crash, top in states(tmp_path, log, start=marks[2]):
        where = f"after {done} of {len(log)} operations, {crash}"
        checkpoints = open_checkpoints(top / "c", attempt=3)
        checkpoints.publish(new)
        assert checkpoints.newest() == new, where
        assert checkpoints.load(new, 0)["n"] == 200, where


def test_latest_names_a_commit_that_is_there(tmp_path):
    (tmp_path / "recorded").mkdir()
    log, _, _ = record(tmp_path / "recorded" / "c")
    named = set()
    for _, crash, top in states(tmp_path, log, start=0):
        latest = top / "c/job/LATEST"
        if latest.exists():
            directory = latest.read_text().strip()
            named.add(directory)
            assert (top / "c/job" / directory / "manifest.json").exists(), crash
    assert named == {"step-0000000100", "step-0000000200"}


@pytest.mark.parametrize("forgotten", ["sync", "sync_dir"])
def test_this_test_finds_a_missing_sync(tmp_path, forgotten):
    (tmp_path / "recorded").mkdir()
    log, _, (_, new) = record(tmp_path / "recorded" / "c")
    without = [operation for operation in log if operation[0] != forgotten]
    found = [
        open_checkpoints(top / "c", attempt=3).newest()
        for _, _, top in states(tmp_path, without, start=len(without))
    ]
    assert found != [new, new, new]
