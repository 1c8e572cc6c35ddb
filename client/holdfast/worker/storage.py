"""Where checkpoints lie.

A checkpoint directory is shared by all ranks of its scope, by processes that die at any moment, and by attempts
that do not know yet that they are superseded. So a file is filled under a name that only its writer uses, made
durable, and only then given its own name: whoever sees it sees all of it, whatever was lost.

All changes go through `Files`, a seam as narrow as the system calls, so that a test can record them and look at
the disk after each one.
"""

# pathlib is one more import to pay for at every restart
# ruff: noqa: PTH100, PTH102, PTH105, PTH106, PTH108, PTH112, PTH116, PTH118, PTH120, PTH123, PTH208

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol

from holdfast.worker.errors import CheckpointError


class Storage(Protocol):
    """What checkpoints need of a place. Names are paths below it, with '/' between their parts."""

    def stage(self, name: str, write: Callable[[str], None]) -> None:
        """Make the file `name`, or replace it: `write(path)` fills a scratch file, which then gets the name.

        When it returns the file is durable. When it raises nothing is left. Raises OSError, and what `write` does.
        """

    def read(self, name: str) -> bytes:
        """What the file holds. Raises FileNotFoundError."""

    def fetch(self, name: str) -> str:
        """A path on this machine where the file can be read. Raises FileNotFoundError."""

    def names(self) -> list[str]:
        """What lies at the top; empty when the place does not exist yet."""

    def exclusive(self) -> AbstractContextManager[None]:
        """Keep every other process out of the same block meanwhile."""

    def close(self) -> None:
        """Remove this writer's scratch files."""


class Files:
    """The changes that are made to a disk, one method for each kind."""

    def make_dir(self, path: str) -> None:
        """Make one directory, unless it is there."""
        with contextlib.suppress(FileExistsError):
            os.mkdir(path)

    def write(self, path: str, write: Callable[[str], None]) -> None:
        """Have `write(path)` make and fill a file."""
        write(path)

    def sync(self, path: str) -> None:
        """Make the content of a file durable."""
        self._fsync(path, os.O_RDONLY)

    def rename(self, old: str, new: str) -> None:
        """Give a file another name, in place of what had it."""
        os.replace(old, new)

    def sync_dir(self, path: str) -> None:
        """Make the names in a directory durable."""
        self._fsync(path, os.O_RDONLY | os.O_DIRECTORY)

    def remove(self, path: str) -> None:
        """Remove a scratch file, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)

    def remove_dir(self, path: str) -> None:
        """Remove a scratch directory and the files in it, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(path):
                self.remove(os.path.join(path, name))
            os.rmdir(path)

    def _fsync(self, path: str, flags: int) -> None:
        fd = os.open(path, flags | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def local_root(uri: str) -> str:
    """The directory that a checkpoint URI names. Raises CheckpointError for places that are not local."""
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return os.path.abspath(uri)
    if scheme == "file" and rest.startswith("/"):
        return rest
    raise CheckpointError(f"checkpoints cannot go to {uri!r}: give a directory, or file:///and/its/path")


class LocalStorage:
    """A directory on a file system that is local, or that all nodes see."""

    def __init__(self, top: str, below: str, rank: int, attempt: int, files: Files | None = None) -> None:
        """The place is the directory `below` the directory `top`; neither need exist yet.

        `rank` and `attempt` name this writer's scratch directory, which no other process writes in.
        """
        self._top = top
        self._root = os.path.join(top, below)
        self._rank = rank
        self._attempt = attempt
        self._files = files or Files()
        self._scratch = os.path.join(self._root, f"tmp.rank-{rank:05}.attempt-{attempt}")
        self._has_scratch = False
        self._durable: set[str] = set()

    def stage(self, name: str, write: Callable[[str], None]) -> None:
        path = self._path(name)
        directory, base = os.path.split(path)
        scratch = os.path.join(self._scratch, base)
        files = self._files
        try:
            self._make_durable(directory)
            self._make_scratch()
            files.write(scratch, write)
            files.sync(scratch)
            files.rename(scratch, path)
            files.sync_dir(directory)
        except BaseException:
            with contextlib.suppress(OSError):
                files.remove(scratch)
            self._forget()
            raise

    def read(self, name: str) -> bytes:
        with open(self._path(name), "rb") as file:
            return file.read()

    def fetch(self, name: str) -> str:
        path = self._path(name)
        os.stat(path)
        return path

    def names(self) -> list[str]:
        try:
            return os.listdir(self._root)
        except FileNotFoundError:
            return []

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        fd = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)  # which unlocks it

    @contextlib.contextmanager
    def claim(self) -> Iterator[None]:
        """Keep every other process that claims this place out meanwhile. Raises CheckpointError when one has it."""
        self._make_durable(self._root)
        fd = os.open(os.path.join(self._root, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise CheckpointError(
                    f"another process keeps its checkpoints in {self._root}; "
                    "give this one its own place with HOLDFAST_CHECKPOINT_URI"
                ) from None
            yield
        finally:
            os.close(fd)

    def close(self) -> None:
        if self._has_scratch:
            self._has_scratch = False
            self._files.remove_dir(self._scratch)

    def _forget(self) -> None:
        """Look at the directories again next time: what was known of them may be what was wrong."""
        self._durable.clear()
        self._has_scratch = False

    def _path(self, name: str) -> str:
        parts = name.split("/")
        if any(part in ("", ".", "..") for part in parts):
            raise CheckpointError(f"{name!r} is no name below {self._root}")
        return os.path.join(self._root, *parts)

    def _make_durable(self, directory: str) -> None:
        """Make a directory and those above it that are missing.

        The top and what is below it are synced even when they exist: another rank may have made them a moment ago
        and not have come as far as its own sync.
        """
        if directory in self._durable:
            return
        parent = os.path.dirname(directory)
        if len(directory) > len(self._top) or not os.path.isdir(parent):
            self._make_durable(parent)
        self._files.make_dir(directory)
        self._files.sync_dir(parent)
        self._durable.add(directory)

    def _make_scratch(self) -> None:
        """Make the scratch directory, once, and remove those that dead attempts of this rank left."""
        if self._has_scratch:
            return
        prefix = f"tmp.rank-{self._rank:05}.attempt-"
        for name in self.names():
            attempt = name.removeprefix(prefix)
            if attempt != name and attempt.isdecimal() and int(attempt) <= self._attempt:
                self._files.remove_dir(os.path.join(self._root, name))
        self._files.make_dir(self._scratch)
        self._has_scratch = True
