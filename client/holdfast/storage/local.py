"""A directory on a file system that is local, or that all nodes see.

It is shared by all ranks of a scope, by processes that die at any moment, and by attempts that do not know yet that
they are superseded. So a file is filled under a name that only its writer uses, made durable, and only then given
its own name: whoever sees it sees all of it, whatever was lost.

All changes go through `Files`, a seam as narrow as the system calls, so that a test can record them, make each of
them fail, and look at the disk after each one.
"""

import contextlib
import errno
import fcntl
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Self

from holdfast.storage.api import Body, Bytes, Entry, StorageError, Writer, checked

WRITE_BACK_BYTES = 32 << 20
"""So much is written before the kernel is asked to bring it to the disk, while the next is being written."""


class Files:
    """The changes that are made to a disk, one method for each system call that makes them."""

    def make_dir(self, path: str) -> None:
        """Make one directory, unless it is there."""
        with contextlib.suppress(FileExistsError):
            os.mkdir(path)

    def create(self, path: str) -> int:
        """Make an empty file, in place of what has the name, and open it."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)

    def write(self, fd: int, data: memoryview, offset: int) -> None:
        """Write all of the data at the offset."""
        while data:
            done = os.pwrite(fd, data, offset)
            if not done:
                raise OSError(errno.EIO, "nothing was written")
            data, offset = data[done:], offset + done

    def sync(self, fd: int) -> None:
        """Make the content of an open file durable."""
        os.fsync(fd)

    def close(self, fd: int) -> None:
        """Close what `create` opened."""
        os.close(fd)

    def rename(self, old: str, new: str) -> None:
        """Give a file another name, in place of what had it."""
        os.replace(old, new)

    def sync_dir(self, path: str) -> None:
        """Make the names in a directory durable."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def remove(self, path: str) -> None:
        """Remove a file, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)

    def remove_dir(self, path: str) -> None:
        """Remove a directory, if it is there and empty."""
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(path)


class LocalReader:
    """An open file. See `api.Reader`."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        status = os.fstat(self._fd)
        self.size = status.st_size
        self.path: str | None = path
        self.version = _version(status)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """See `api.Reader`."""
        while buffer:
            done = os.preadv(self._fd, [buffer], offset)
            if not done:
                raise EOFError(f"{self.path} ends at byte {offset}")
            buffer, offset = buffer[done:], offset + done

    def close(self) -> None:
        """See `api.Reader`."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class LocalStorage:
    """A directory. See `api.Storage`."""

    def __init__(
        self, top: str, below: str = "", writer: Writer | None = None, files: Files | None = None
    ) -> None:
        """The place is the directory `below` the directory `top`; neither need exist yet.

        What is made below `top` is made durable up to it. Without `writer` the scratch directory is this process's.
        """
        self._top = top
        self.uri = os.path.join(top, below) if below else top
        self._root = self.uri
        self._writer = writer
        self._files = files or Files()
        mine = f"rank-{writer.rank:05}.attempt-{writer.attempt}" if writer else f"process-{os.getpid()}"
        self._scratch = os.path.join(self._root, f"tmp.{mine}")
        self._has_scratch = False
        self._cleared = False
        self._making = threading.Lock()
        self._durable: set[str] = set()

    def put(self, name: str, body: Body) -> None:
        """See `api.Storage`."""
        path = self._path(name)
        directory = os.path.dirname(path)
        # Several threads may be here, for one name or for one base name in several directories.
        scratch = os.path.join(self._scratch, f"{threading.get_native_id()}.{name.replace('/', '.')}")
        files = self._files
        try:
            self._make_durable(directory)
            self._make_scratch()
            self._fill(scratch, body)
            files.rename(scratch, path)
            files.sync_dir(directory)
        except BaseException:
            with contextlib.suppress(OSError):
                files.remove(scratch)
            self._forget()
            raise

    def update(self, name: str, change: Callable[[bytes | None], bytes | None]) -> None:
        """See `api.Storage`."""
        with self.locked():
            try:
                before: bytes | None = self.read(name)
            except FileNotFoundError:
                before = None
            after = change(before)
            if after is not None:
                self.put(name, Bytes(after))
            elif before is not None:
                # Whoever wrote it may have died before its name was durable.
                directory = os.path.dirname(self._path(name))
                self._make_durable(directory)
                self._files.sync_dir(directory)

    def read(self, name: str) -> bytes:
        """See `api.Storage`."""
        with open(self._path(name), "rb") as file:
            return file.read()

    def open(self, name: str) -> LocalReader:
        """See `api.Storage`."""
        return LocalReader(self._path(name))

    def names(self) -> list[str]:
        """See `api.Storage`."""
        try:
            return [name for name in os.listdir(self._root) if not name.startswith("tmp.")]
        except FileNotFoundError:
            return []

    def files(self, under: str = "") -> list[Entry]:
        """See `api.Storage`."""
        top = self._path(under) if under else self._root
        return sorted(self._walk(top))

    def rename(self, name: str, new: str) -> None:
        """See `api.Storage`."""
        old, path = self._path(name), self._path(new)
        self._make_durable(os.path.dirname(path))
        try:
            self._files.rename(old, path)
        finally:
            # Even when it is gone: whoever renamed it may have died before that was durable.
            for directory in dict.fromkeys((os.path.dirname(path), os.path.dirname(old))):
                self._files.sync_dir(directory)

    def delete(self, names: Iterable[str]) -> None:
        """See `api.Storage`."""
        paths = [self._path(name) for name in names]
        for path in paths:
            self._files.remove(path)
        for directory in dict.fromkeys(map(os.path.dirname, paths)):
            if os.path.isdir(directory):
                self._files.sync_dir(directory)
                self._prune(directory)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other updates out, of this process and of others; waits for one that is under way."""
        try:
            self._make_durable(self._root)
            fd = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            self._forget()
            raise
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            # Closing alone would not unlock it while a child that was forked meanwhile has it open.
            with contextlib.suppress(OSError):
                fcntl.flock(fd, fcntl.LOCK_UN)
            os.close(fd)

    @contextlib.contextmanager
    def claim(self) -> Iterator[None]:
        """Keep every other process that claims this place out meanwhile. Raises StorageError when one has it."""
        self._make_durable(self._root)
        fd = os.open(os.path.join(self._root, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StorageError(
                    f"another process keeps its checkpoints in {self._root}; "
                    "give this one its own place with HOLDFAST_CHECKPOINT_URI"
                ) from None
            yield
        finally:
            os.close(fd)

    def close(self) -> None:
        """See `api.Storage`."""
        self._has_scratch = False
        with contextlib.suppress(OSError):  # whoever writes here next removes it
            self._clear(self._scratch)

    def _fill(self, path: str, body: Body) -> None:
        """Write a body to a file and make its content durable.

        The kernel is asked to write back while there is more to come, or the disk would idle until the sync. The
        advice says that the pages are not needed any more; those that are still dirty, as these are, stay.
        """
        files = self._files
        fd = files.create(path)
        try:
            start = end = 0
            for offset, data in body.pieces():
                files.write(fd, data, offset)
                if offset != end:
                    start = offset
                end = offset + len(data)
                if end - start >= WRITE_BACK_BYTES:
                    os.posix_fadvise(fd, start, end - start, os.POSIX_FADV_DONTNEED)
                    start = end
            files.sync(fd)
        finally:
            files.close(fd)

    def _walk(self, directory: str) -> Iterator[Entry]:
        try:
            found = list(os.scandir(directory))
        except (FileNotFoundError, NotADirectoryError):
            return
        for each in found:
            if each.is_dir():
                if not each.name.startswith("tmp."):
                    yield from self._walk(each.path)
                continue
            with contextlib.suppress(FileNotFoundError):
                status = each.stat()
                name = os.path.relpath(each.path, self._root)
                yield Entry(name, status.st_size, _version(status))

    def _prune(self, directory: str) -> None:
        """Remove a directory that has become empty, as a prefix without objects is gone."""
        if directory == self._root:
            return
        try:
            self._files.remove_dir(directory)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                return
            raise
        self._durable.discard(directory)
        self._files.sync_dir(os.path.dirname(directory))

    def _forget(self) -> None:
        """Look at the directories again next time: what was known of them may be what was wrong."""
        self._durable.clear()
        self._has_scratch = False

    def _path(self, name: str) -> str:
        return os.path.join(self._root, checked(name, self._root))

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
        """Make the scratch directory, and once remove those that dead attempts of this rank left."""
        with self._making:
            if self._has_scratch:
                return
            if self._writer is not None and not self._cleared:
                self._clear_of_dead_attempts(self._writer)
                self._cleared = True
            self._files.make_dir(self._scratch)
            self._has_scratch = True

    def _clear_of_dead_attempts(self, writer: Writer) -> None:
        prefix = f"tmp.rank-{writer.rank:05}.attempt-"
        for name in os.listdir(self._root):
            attempt = name.removeprefix(prefix)
            if attempt != name and attempt.isdecimal() and int(attempt) <= writer.attempt:
                self._clear(os.path.join(self._root, name))

    def _clear(self, directory: str) -> None:
        """Remove a scratch directory and the files in it, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(directory):
                self._files.remove(os.path.join(directory, name))
            self._files.remove_dir(directory)


def _version(status: os.stat_result) -> str:
    """Two files that were put within one tick of the clock have the same time."""
    return f"{status.st_mtime_ns:x}-{status.st_ino:x}"
