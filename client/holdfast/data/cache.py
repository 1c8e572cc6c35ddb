"""A directory of shards that lie elsewhere, with a limit to its size.

Processes share it, and any of them may be killed at any moment. A shard is filled under another name by whoever holds
the lock on that file, and gets its own when it is whole, verified and durable; a lock ends with its process, and what
that had left half done is filled anew. The least recently used make room. A shard that is removed while a process
has it mapped stays readable there.
"""

# pathlib is one more import to pay for at every restart
# ruff: noqa: PTH103, PTH104, PTH108, PTH116, PTH118, PTH119

import contextlib
import errno
import fcntl
import os
from collections.abc import Callable, Iterator, Mapping

import xxhash

from holdfast.data.errors import DataError
from holdfast.data.shards import ShardInfo
from holdfast.units import parse_size

LIMIT = 32 << 30
"""Bytes that the shards may take when HOLDFAST_CACHE_BYTES does not say it."""

_PART = ".part"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

Fill = Callable[[int], None]
"""Writes the shard to a file that is open at this descriptor, and as long as it will be."""


class ShardCache:
    """Shards on local disk. Safe to use from several threads."""

    def __init__(self, directory: str, limit: int = LIMIT) -> None:
        """The directory need not exist yet."""
        self._directory = os.path.join(directory, "shards")
        self.limit = limit

    def get(self, base: str, shard: ShardInfo, fill: Fill) -> str:
        """The path of a shard, which is filled if it is not there. Raises what `fill` does, OSError and DataError."""
        path = self._path(base, shard)
        while not self._touch(path, shard.size_bytes):
            os.makedirs(self._directory, mode=0o700, exist_ok=True)
            fd = os.open(path + _PART, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                # Another process may have filled it, or removed the file, while this one waited.
                if not self._touch(path, shard.size_bytes) and _is(fd, path + _PART):
                    self._make(fd, path, shard, fill)
            finally:
                os.close(fd)
        return path

    def _path(self, base: str, shard: ShardInfo) -> str:
        """Named after place and content: what has changed is another shard."""
        name = f"{base}/{shard.file}|{shard.size_bytes}|{shard.digest}"
        return os.path.join(
            self._directory,
            f"{xxhash.xxh3_128_hexdigest(name.encode())}.{os.path.basename(shard.file)[-80:]}",
        )

    def _touch(self, path: str, size: int) -> bool:
        """Whether it is there; if so, it was used now."""
        try:
            if os.stat(path).st_size != size:
                return False
            os.utime(path)
        except FileNotFoundError:
            return False
        return True

    def _make(self, fd: int, path: str, shard: ShardInfo, fill: Fill) -> None:
        try:
            os.ftruncate(fd, 0)
            with self._locked():
                self._evict(shard.size_bytes, path)
                # The blocks are had now: a full disk is an error here, and not a bus error in the middle of an epoch.
                if shard.size_bytes:
                    os.posix_fallocate(fd, 0, shard.size_bytes)
            fill(fd)
            os.fsync(fd)
            os.rename(path + _PART, path)
            with self._locked():
                self._evict(0, path)  # others, who were being filled as well
        except BaseException as error:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path + _PART)
            if isinstance(error, OSError) and error.errno in _FULL:
                raise DataError(
                    f"no room for the shard {shard.file} in {self._directory}: give a place with more to "
                    f"HOLDFAST_CACHE_DIR, or a HOLDFAST_CACHE_BYTES below {self.limit}"
                ) from error
            raise

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One process at a time makes room."""
        directory = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(directory, fcntl.LOCK_EX)
            yield
        finally:
            os.close(directory)  # which unlocks it

    def _evict(self, size: int, wanted: str) -> None:
        """Remove what was not used for longest until so much more is within the limit; what is wanted now stays.

        What is just being filled stays too, and so the limit may be exceeded while it is: to wait for a process that
        may hang would be worse.
        """
        there = sorted(self._entries())
        total = size + sum(entry[1] for entry in there)
        for _, each, path in there:
            if total <= self.limit:
                return
            if path != wanted and _remove(path):
                total -= each

    def _entries(self) -> Iterator[tuple[int, int, str]]:
        """When it was used last, its size, and its path."""
        for entry in os.scandir(self._directory):
            with contextlib.suppress(FileNotFoundError):
                status = entry.stat()
                yield status.st_mtime_ns, status.st_size, entry.path


def cache_dir(env: Mapping[str, str]) -> str:
    """Where this user's data are kept on this machine."""
    if given := env.get("HOLDFAST_CACHE_DIR"):
        return os.path.abspath(given)  # noqa: PTH100
    if home := env.get("XDG_CACHE_HOME") or (env.get("HOME") and os.path.join(env["HOME"], ".cache")):
        return os.path.join(home, "holdfast")
    return os.path.join(env.get("TMPDIR") or "/tmp", f"holdfast-{os.getuid()}")  # noqa: S108  nobody else can use it


def cache_limit(env: Mapping[str, str]) -> int:
    """HOLDFAST_CACHE_BYTES. Raises ValueError."""
    text = env.get("HOLDFAST_CACHE_BYTES", "")
    try:
        return parse_size(int(text) if text.isdecimal() else text) if text else LIMIT
    except ValueError as error:
        raise ValueError(f"the environment variable HOLDFAST_CACHE_BYTES: {error}") from error


def _is(fd: int, path: str) -> bool:
    try:
        there = os.stat(path)
    except FileNotFoundError:
        return False
    here = os.fstat(fd)
    return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)


def _remove(path: str) -> bool:
    """Remove a shard, unless it is just being filled."""
    with contextlib.suppress(FileNotFoundError, BlockingIOError):
        if not path.endswith(_PART):
            os.unlink(path)
            return True
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(path)
        finally:
            os.close(fd)
        return True
    return False
