"""Whatever place fsspec knows: Google's and Azure's object stores, HDFS, SFTP and more.

fsspec promises less than a disk or S3 does, and each of its file systems something else. So little is taken for
granted here: a stream that becomes visible when it is closed on an object store; on all others a move from one name to
another. Whether what was closed is durable is the store's to keep. None has a condition on writing, so `update` keeps
out this process's other threads, and no other process. docs/storage.md says which promises that leaves.

fsspec is imported with this module, so that it is paid for only where it is used: `places.open_storage` sees to that.
"""

import contextlib
import errno
import os
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Any, Self

import fsspec
from fsspec.core import url_to_fs

from holdfast.storage.api import (
    Body,
    Bytes,
    Entry,
    Gathered,
    StorageError,
    Unreachable,
    Writer,
    checked,
)

OBJECT_STORES = frozenset({"abfs", "abfss", "az", "gcs", "gs", "oci", "ocilake", "oss", "r2", "s3a", "wasb"})
"""Where a file appears whole when its stream is closed, and a move would be a copy."""
VERSIONS = (
    "etag",
    "ETag",
    "md5Hash",
    "generation",
    "mtime",
    "last_modified",
    "LastModified",
    "updated",
    "created",
)
"""What file systems call that which changes with a file's content, the most telling first."""
RECURSIVE_RMDIR = frozenset({"hdfs", "arrow_hdfs"})
"""Where removing a directory removes what came into it a moment ago. Empty ones stay there."""
CHUNK_BYTES = 4 << 20
"""What is written at once: a stream copies as much."""
SCRATCH = "tmp."
"""What the names of files begin with that are not whole yet."""

_NO_WAY = frozenset({errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTDOWN})
_updates = threading.Lock()


class FsspecReader:
    """A file of some file system, read by ranges. See `api.Reader`."""

    def __init__(self, fs: Any, path: str) -> None:
        """Raises what `_told` does."""
        self._fs = fs
        self._path = path
        with _told(path):
            found = fs.info(path)
        if found["type"] == "directory":
            raise IsADirectoryError(errno.EISDIR, "it is a directory", path)
        self.size: int = found["size"]
        self.path: str | None = None
        self.version = _version(found)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """See `api.Reader`. Raises OSError when the file was replaced since it was opened."""
        end = offset + len(buffer)
        if not len(buffer):
            return
        if end > self.size:
            raise EOFError(f"{self._path} ends at byte {self.size}")
        with _told(self._path):
            data = self._fs.cat_file(self._path, start=offset, end=end)
            self._fs.invalidate_cache()
            if _version(self._fs.info(self._path)) != self.version or len(data) != len(buffer):
                raise OSError(errno.ESTALE, "it was replaced while it was read; open it again", self._path)
        buffer[:] = data

    def close(self) -> None:
        """See `api.Reader`: nothing is held."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class FsspecStorage:
    """A directory of some file system. See `api.Storage`."""

    def __init__(self, uri: str, below: str = "", writer: Writer | None = None) -> None:
        """The place is what is `below` the URI. Raises StorageError when fsspec cannot make anything of it."""
        self.uri = f"{uri.rstrip('/')}/{checked(below, uri)}" if below else uri
        try:
            self._fs, root = url_to_fs(self.uri)
        except ImportError as error:
            raise StorageError(f"{uri} needs a package that is not installed: {error}") from error
        except ValueError as error:
            raise StorageError(f"{uri} is no place for files: {error}") from error
        self._root = root.rstrip("/")
        protocols = {self._fs.protocol} if isinstance(self._fs.protocol, str) else set(self._fs.protocol)
        self._is_object_store = bool(protocols & OBJECT_STORES)
        self._prunes = not (self._is_object_store or protocols & RECURSIVE_RMDIR)
        self._mine = f"rank-{writer.rank:05}.attempt-{writer.attempt}" if writer else f"process-{os.getpid()}"
        self._writer = writer
        self._lock = threading.Lock()
        self._swept = writer is None

    def put(self, name: str, body: Body) -> None:
        """See `api.Storage`. Durable as soon as the file system is, of which fsspec says nothing."""
        path = self._path(name)
        source = Gathered(body)
        with _told(path):
            if self._is_object_store:
                self._stream(path, source)
                return
            self._fs.makedirs(self._root, exist_ok=True)
            self._sweep()
            scratch = self._path(f"{SCRATCH}{self._mine}.{secrets.token_hex(4)}")
            try:
                self._stream(scratch, source)
                self._move(scratch, path)
            except BaseException:
                with contextlib.suppress(Exception):
                    self._fs.rm_file(scratch)
                raise

    def update(self, name: str, change: Callable[[bytes | None], bytes | None]) -> None:
        """See `api.Storage`. Other processes are not kept out: of two updates at once, one may be lost."""
        with _updates:
            try:
                before: bytes | None = self.read(name)
            except FileNotFoundError:
                before = None
            after = change(before)
            if after is not None:
                self.put(name, Bytes(after))

    def read(self, name: str) -> bytes:
        """See `api.Storage`."""
        path = self._path(name)
        with _told(path):
            return bytes(self._fs.cat_file(path))

    def open(self, name: str) -> FsspecReader:
        """See `api.Storage`."""
        return FsspecReader(self._fs, self._path(name))

    def names(self) -> list[str]:
        """See `api.Storage`."""
        with _told(self._root):
            self._fs.invalidate_cache()
            try:
                paths: list[str] = self._fs.ls(self._root, detail=False)
            except FileNotFoundError:
                return []
        names = (path.rstrip("/").removeprefix(self._root).lstrip("/") for path in paths)
        return [name for name in names if name and not name.startswith(SCRATCH)]

    def files(self, under: str = "") -> list[Entry]:
        """See `api.Storage`."""
        top = self._path(under) if under else self._root
        with _told(top):
            self._fs.invalidate_cache()
            found: dict[str, dict[str, Any]] = self._fs.find(top, detail=True)
        entries = (
            Entry(path.removeprefix(f"{self._root}/"), info["size"], _version(info))
            for path, info in found.items()
            if path.startswith(f"{top}/") and info["type"] != "directory"
        )
        return sorted(
            each for each in entries if not any(part.startswith(SCRATCH) for part in each.name.split("/"))
        )

    def rename(self, name: str, new: str) -> None:
        """See `api.Storage`. Where the file system has no move, it is a copy and a delete."""
        old, path = self._path(name), self._path(new)
        with _told(old):
            self._fs.info(old)
            if old != path:
                self._move(old, path)

    def delete(self, names: Iterable[str]) -> None:
        """See `api.Storage`."""
        paths = [self._path(name) for name in names]
        for path in paths:
            with contextlib.suppress(FileNotFoundError), _told(path):
                self._fs.rm_file(path)
        if not self._prunes:
            return
        for directory in dict.fromkeys(path.rpartition("/")[0] for path in paths):
            self._prune(directory)

    def close(self) -> None:
        """See `api.Storage`: what a put left half done, it removed."""

    def _path(self, name: str) -> str:
        return f"{self._root}/{checked(name, self.uri)}"

    def _stream(self, path: str, source: Gathered) -> None:
        """Write a file from end to end, and look whether all of it came. A failure leaves none on object stores."""
        file = self._fs.open(path, "wb")
        try:
            for start in range(0, source.size, CHUNK_BYTES):
                for view in source.views(start, min(start + CHUNK_BYTES, source.size)):
                    file.write(view)
            _sync(file)
        except BaseException:
            self._give_up(file)
            raise
        file.close()
        self._fs.invalidate_cache()
        size = self._fs.info(path)["size"]
        if size != source.size:
            raise OSError(errno.EIO, f"{size} bytes of {source.size} came; put it again", path)

    def _give_up(self, file: Any) -> None:
        """Let go of a stream without completing it: object stores make a file of what has been closed."""
        with contextlib.suppress(Exception):
            if self._is_object_store:
                file.discard()
            else:
                file.close()
        with contextlib.suppress(AttributeError):
            file.closed = True  # or it would be completed when it is collected

    def _move(self, old: str, new: str) -> None:
        """Give a file another name, in place of what had it."""
        fs = self._fs
        for again in (False, True):
            if not self._is_object_store:
                fs.makedirs(new.rpartition("/")[0], exist_ok=True)
            try:
                if type(fs).mv is fsspec.AbstractFileSystem.mv:
                    # It takes names for patterns; these do not.
                    fs.cp_file(old, new)
                    fs.rm_file(old)
                else:
                    fs.mv(old, new)
            except Exception:
                if again or not fs.exists(old):
                    raise
                # Another process has removed the directory, which was empty; or it is a file system that moves
                # nothing onto what is there.
                with contextlib.suppress(FileNotFoundError):
                    fs.rm_file(new)
            else:
                return

    def _sweep(self) -> None:
        """Remove what attempts of this writer's rank, up to its own, left half done."""
        with self._lock:
            if self._swept or self._writer is None:
                return
            top = self._path(f"{SCRATCH}rank-{self._writer.rank:05}.attempt-")
            for path in self._fs.ls(self._root, detail=False):
                attempt = path.removeprefix(top).partition(".")[0]
                if path.startswith(top) and attempt.isdecimal() and int(attempt) <= self._writer.attempt:
                    with contextlib.suppress(FileNotFoundError):
                        self._fs.rm_file(path)
            self._swept = True

    def _prune(self, directory: str) -> None:
        """Remove a directory that has become empty, as a prefix without objects is gone."""
        if directory == self._root:
            return
        with contextlib.suppress(OSError):
            self._fs.invalidate_cache()
            if not self._fs.ls(directory, detail=False):
                self._fs.rmdir(directory)


@contextlib.contextmanager
def _told(path: str) -> Iterator[None]:
    """Raise what a file system raises in here as an OSError; its own words may hold a secret, so they are not repeated.

    What a library does not say in Python's words is taken for trouble that may pass.
    """
    try:
        yield
    except (ConnectionError, TimeoutError) as error:
        raise Unreachable(errno.EHOSTUNREACH, f"no answer ({type(error).__name__})", path) from error
    except OSError as error:
        if error.errno not in _NO_WAY:
            raise
        raise Unreachable(errno.EHOSTUNREACH, "no way there", path) from error
    except Exception as error:
        if type(error).__module__ == "builtins":
            raise
        raise Unreachable(errno.EIO, f"the store is in trouble ({type(error).__name__})", path) from error


def _sync(file: Any) -> None:
    """Make a file durable that is one of this machine's."""
    try:
        fd = file.fileno()
    except (AttributeError, OSError):
        return
    file.flush()
    os.fsync(fd)


def _version(info: dict[str, Any]) -> str:
    found = next((info[word] for word in VERSIONS if info.get(word)), "")
    # Some say a time in one way when they list, and in another when they look at one file.
    return str(found.timestamp() if isinstance(found, datetime) else found)
