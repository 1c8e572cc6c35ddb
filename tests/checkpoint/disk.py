"""A disk of which it is known what a crash may leave.

`Recorder` does what it is told at the seam of the storage, and remembers it. `Disk` plays a record back and promises
no more than POSIX does: the content of a file after its sync, a name after the sync of its directory. Of all else
any part may be gone after a crash, in any combination: whole writes, half of the last one, names that were given or
taken away. Only a rename inside one directory is kept or lost as a whole.
"""

import itertools
import os
import random

from holdfast.storage.local import Files

EXHAUSTIVE = 7
"""Of so many things that a crash may keep or lose every combination is tried, of more a sample."""
SAMPLE = 96
DIRECTORY = "directory"


class Recorder(Files):
    """`log` holds (operation, arguments); an open file is named by a number that is used once."""

    def __init__(self):
        self.log = []
        self._numbers = {}
        self._next = itertools.count()

    def make_dir(self, path):
        if not os.path.isdir(path):
            super().make_dir(path)
            self.log.append(("make_dir", path))

    def create(self, path):
        fd = super().create(path)
        self._numbers[fd] = next(self._next)
        self.log.append(("create", path, self._numbers[fd]))
        return fd

    def write(self, fd, data, offset):
        super().write(fd, data, offset)
        self.log.append(("write", self._numbers[fd], offset, bytes(data)))

    def sync(self, fd):
        super().sync(fd)
        self.log.append(("sync", self._numbers[fd]))

    def lose(self, fd):
        """A sync has failed: the writes before it will never be durable, whatever the next sync says."""
        self.log.append(("lose", self._numbers[fd]))

    def rename(self, old, new):
        super().rename(old, new)
        self.log.append(("rename", old, new))

    def sync_dir(self, path):
        super().sync_dir(path)
        self.log.append(("sync_dir", path))

    def remove(self, path):
        if os.path.exists(path):
            super().remove(path)
            self.log.append(("remove", path))

    def remove_dir(self, path):
        if os.path.isdir(path):
            super().remove_dir(path)
            self.log.append(("remove", path))


class File:
    """What is in a file: what is durable, and the writes since, each of which may have reached the disk or not."""

    def __init__(self):
        self.durable = b""
        self.writes = []

    def content(self, kept):
        data = bytearray(self.durable)
        for offset, piece in kept:
            data.extend(bytes(max(0, offset + len(piece) - len(data))))
            data[offset : offset + len(piece)] = piece
        return bytes(data)


class Disk:
    """`there` is what a reader sees, {path: File or DIRECTORY}; `crashes` is what may be there after a crash."""

    def __init__(self, top):
        self.there = {top: DIRECTORY}
        self._durable = dict(self.there)
        self._changes = []  # (directory, {path: node, or None where it is gone}), those that are not synced
        self._open = {}
        self._last = None

    def apply(self, operation, *rest):
        getattr(self, operation)(*rest)
        self._last = self._open[rest[0]] if operation == "write" else None

    def make_dir(self, path):
        self._change({path: DIRECTORY})

    def create(self, path, number):
        self._open[number] = File()
        self._change({path: self._open[number]})

    def write(self, number, offset, data):
        self._open[number].writes.append((offset, data))

    def sync(self, number):
        file = self._open[number]
        file.durable, file.writes = file.content(file.writes), []

    def lose(self, number):
        self._open[number].writes = []

    def rename(self, old, new):
        node = self.there[old]
        self._change({old: None, new: node})

    def remove(self, path):
        self._change({path: None})

    def sync_dir(self, path):
        for directory, change in self._changes:
            if directory == path:
                _update(self._durable, change)
        self._changes = [each for each in self._changes if each[0] != path]

    def _change(self, change):
        _update(self.there, change)
        by_directory = {}
        for path, node in change.items():
            by_directory.setdefault(os.path.dirname(path), {})[path] = node
        self._changes += by_directory.items()

    def crashes(self, seed, sample=SAMPLE):
        """Every state, or a sample of them, as {path: bytes or DIRECTORY}: that of a dead process is the first."""
        files = {id(node): node for node in (*self.there.values(), *self._all_durable())}
        written = [file for file in files.values() if file is not DIRECTORY and file.writes]
        loose = [*self._changes, *((file, write) for file in written for write in file.writes)]
        for kept in _subsets(len(loose), seed, sample):
            yield self._after([each for each, keep in zip(loose, kept, strict=True) if keep])
        if self._last is not None and self._last.writes:
            offset, data = self._last.writes[-1]
            for cut in sorted({1, len(data) // 2, len(data) - 1} - {0, len(data)}):
                for others in (loose[:-1], [], self._changes):
                    whole = [each for each in others if each != (self._last, (offset, data))]
                    yield self._after([*whole, (self._last, (offset, data[:cut]))])

    def _all_durable(self):
        names = dict(self._durable)
        for _, change in self._changes:
            names.update({path: node for path, node in change.items() if node is not None})
        return names.values()

    def _after(self, kept):
        names = dict(self._durable)
        writes = {}
        for owner, what in kept:
            if isinstance(owner, File):
                writes.setdefault(id(owner), []).append(what)
            else:
                _update(names, what)
        return {
            path: node if node is DIRECTORY else node.content(writes.get(id(node), []))
            for path, node in names.items()
            if _reachable(path, names)
        }


def _update(names, change):
    for path, node in change.items():
        if node is None:
            names.pop(path, None)
        else:
            names[path] = node


def _reachable(path, names):
    parents = itertools.takewhile(lambda parent: parent, _parents(path))
    return all(names.get(parent) is DIRECTORY for parent in parents)


def _parents(path):
    while path := os.path.dirname(path):
        yield path


def _subsets(count, seed, sample):
    """What is kept of `count` things: all, none, and every other combination or a sample of them."""
    if count <= EXHAUSTIVE:
        yield from itertools.product((True, False), repeat=count)
        return
    chance = random.Random(seed)
    yield (True,) * count
    yield (False,) * count
    for only in range(count):
        yield tuple(index == only for index in range(count))
        yield tuple(index != only for index in range(count))
    for _ in range(sample):
        yield tuple(chance.random() < 0.5 for _ in range(count))


def after_crashes(log, top, start=0, sample=SAMPLE):
    """Every state that a crash may leave after `start` operations or more: (operations done, tree)."""
    log = [(name, *(_relative(each, top) for each in rest)) for name, *rest in log]
    disk = Disk("")
    for done in range(len(log) + 1):
        if done:
            disk.apply(*log[done - 1])
        if done >= start:
            for tree in disk.crashes(done, sample):
                yield done, tree


def _relative(each, top):
    if not isinstance(each, str):
        return each
    path = os.path.relpath(each, top)
    return "" if path == "." else path


def build(directory, tree):
    """Put a tree on a real disk."""
    os.mkdir(directory)
    for path, content in sorted(tree.items()):
        where = os.path.join(directory, path)
        if content is DIRECTORY and path:
            os.mkdir(where)
        elif path:
            with open(where, "wb") as file:
                file.write(content)
